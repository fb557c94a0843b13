// Colour maps of 256 colours: the first is for pixels without a value, then from far to near, ever lighter.
// Each rises in lightness alone, so that it can be read without seeing its hues.

/** From blue to yellow, the pair that colour-blind eyes tell apart, in even steps of OKLab's lightness (Ottosson 2020). */
function blueYellow() {
  const colours = [[0, 0, 0]];
  for (let i = 0; i < 255; i++) {
    const t = i / 254;
    const chroma = 0.115 * (1 - 2 * t); // through grey in the middle
    const hue = (264 * Math.PI) / 180;
    colours.push(srgb(0.25 + 0.69 * t, chroma * Math.cos(hue), chroma * Math.sin(hue)));
  }
  return colours;
}

const grey = () => Array.from({ length: 256 }, (_, i) => (i === 0 ? [0, 0, 0] : Array(3).fill(Math.round(25 + (i * 230) / 255))));

function srgb(lightness, a, b) {
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ].map((x) => {
    const light = Math.min(1, Math.max(0, x));
    return Math.round(255 * (light <= 0.0031308 ? 12.92 * light : 1.055 * light ** (1 / 2.4) - 0.055));
  });
}

/** Names and colours, with the package's own first. */
export const colourMaps = (own) => ({ Leadline: own, 'Blue to yellow': blueYellow(), Grey: grey() });
