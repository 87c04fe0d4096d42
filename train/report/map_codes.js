"use strict";
// What pages with maps share: numbers of spots from their text, their colours, and how a number is written.
function bytes(text) {
  const raw = atob(text), result = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) result[i] = raw.charCodeAt(i);
  return result;
}

const floats = (text) => new Float32Array(bytes(text).buffer);

function decode(codes, low, high) { // the highest code that there is means that there is no value
  const missing = 256 ** codes.BYTES_PER_ELEMENT - 1, step = (high - low) / (missing - 1);
  return Float32Array.from(codes, (code) => (code === missing ? NaN : low + code * step));
}

function colorPlace(value, from, to) { // of its red in the palette; NaN where there is no value
  return 3 * Math.min(Math.max(Math.floor((256 * (value - from)) / (to - from || Infinity)), 0), 255);
}

function paintScale(canvas, palette) { // 256 colours from left to right
  const context = canvas.getContext("2d");
  for (let k = 0; k < 256; k++) {
    context.fillStyle = `rgb(${palette[3 * k]} ${palette[3 * k + 1]} ${palette[3 * k + 2]})`;
    context.fillRect(k, 0, 1, 1);
  }
}

function short(value) {
  if (!Number.isFinite(value)) return "none";
  return value !== 0 && Math.abs(value) < 0.01 ? value.toExponential(1) : value.toFixed(Math.abs(value) < 100 ? 2 : 0);
}
