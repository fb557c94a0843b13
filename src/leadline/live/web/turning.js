// Turning a view by mouse, touch and keys.

const START = { yaw: 0.22, pitch: 0.1, away: 1.12 };
const LIMITS = { yaw: [-1.5, 1.5], pitch: [-1.2, 1.2], away: [0.25, 5] };
const KEYS = {
  ArrowLeft: ['yaw', -0.08],
  ArrowRight: ['yaw', 0.08],
  ArrowUp: ['pitch', 0.08],
  ArrowDown: ['pitch', -0.08],
  '+': ['away', -0.1],
  '=': ['away', -0.1],
  '-': ['away', 0.1],
};

/** Let a canvas be turned; `onTurn({yaw, pitch, away})` hears of each pose. Returns the way back to the start. */
export function turnable(canvas, onTurn) {
  const pose = { ...START };
  const fingers = new Map();
  const change = (name, by) => {
    const [least, most] = LIMITS[name];
    pose[name] = Math.min(Math.max(pose[name] + by, least), most);
    onTurn({ ...pose });
  };
  const reset = () => onTurn({ ...Object.assign(pose, START) });
  const gap = () => {
    const [a, b] = [...fingers.values()];
    return Math.hypot(a.x - b.x, a.y - b.y);
  };
  canvas.addEventListener('pointerdown', (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  });
  canvas.addEventListener('pointermove', (event) => {
    const last = fingers.get(event.pointerId);
    if (!last) return;
    const before = fingers.size === 2 ? gap() : 0;
    const [dx, dy] = [event.clientX - last.x, event.clientY - last.y];
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (fingers.size === 2) {
      change('away', pose.away * (before / Math.max(gap(), 1) - 1));
    } else {
      change('yaw', -dx * 0.006);
      change('pitch', dy * 0.006);
    }
  });
  for (const end of ['pointerup', 'pointercancel']) {
    canvas.addEventListener(end, (event) => fingers.delete(event.pointerId));
  }
  canvas.addEventListener('wheel', (event) => {
    event.preventDefault();
    change('away', pose.away * (Math.exp(Math.sign(event.deltaY) * 0.1) - 1));
  }, { passive: false });
  canvas.addEventListener('keydown', (event) => {
    if (event.key === '0') reset();
    const step = KEYS[event.key];
    if (!step || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    change(...step);
  });
  reset();
  return reset;
}
