// NumPy's file format, version 1.0, for one float32 map.

/** The bytes of `numpy.save` for height x width float32. */
export function npy(values, height, width) {
  const dictionary = `{'descr': '<f4', 'fortran_order': False, 'shape': (${height}, ${width}), }`;
  const start = 10; // magic, version and the header's length
  const header = dictionary.padEnd(Math.ceil((start + dictionary.length + 1) / 64) * 64 - start - 1) + '\n';
  const bytes = new Uint8Array(start + header.length + 4 * values.length);
  bytes.set([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, header.length & 255, header.length >> 8]);
  bytes.set(new TextEncoder().encode(header), start);
  const view = new DataView(bytes.buffer, start + header.length);
  values.forEach((value, i) => view.setFloat32(4 * i, value, true));
  return bytes;
}
