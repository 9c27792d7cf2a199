/** A song's shape: peaks of its decoded samples, drawn on a canvas that is also the place to seek. */

const BARS = 400;
// Enough for peaks, and a sixth of the memory of a song's own rate.
const RATE_HZ = 8000;

/** Songs are decoded one after another: eight at once would hold all their samples. */
let turn = Promise.resolve();

/**
 * The greatest magnitude in each of `BARS` equal parts of a song, 0 to 1.
 *
 * @param {() => Promise<ArrayBuffer>} fetchBytes
 * @returns {Promise<number[]>}
 */
export function peaksOf(fetchBytes) {
  const decoded = turn.then(async () => {
    const audio = await new OfflineAudioContext(1, 1, RATE_HZ).decodeAudioData(await fetchBytes());
    const samples = audio.getChannelData(0);
    const step = samples.length / BARS;
    return Array.from({ length: BARS }, (_, bar) => {
      let peak = 0;
      for (let i = Math.floor(bar * step); i < (bar + 1) * step; i += 1) peak = Math.max(peak, Math.abs(samples[i] ?? 0));
      return peak;
    });
  });
  turn = decoded.then(() => {}, () => {});
  return decoded;
}

/**
 * Draws peaks over the canvas's own size; what has been played in the accent's color.
 *
 * @param {HTMLCanvasElement} canvas
 * @param {readonly number[]} peaks
 * @param {number} played share, 0 to 1
 */
export function draw(canvas, peaks, played) {
  const scale = window.devicePixelRatio || 1;
  const { width, height } = canvas.getBoundingClientRect();
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const context = canvas.getContext("2d");
  if (!context || !width) return;
  const style = getComputedStyle(canvas);
  const [past, ahead] = [style.getPropertyValue("--accent"), style.getPropertyValue("--bar")];
  const count = Math.max(1, Math.min(BARS, Math.floor(width / 4)));
  const pitch = canvas.width / count;
  const loudest = Math.max(0.01, ...peaks);
  for (let bar = 0; bar < count; bar += 1) {
    const part = peaks.slice(Math.floor((bar * BARS) / count), Math.max(1, Math.floor(((bar + 1) * BARS) / count)));
    const tall = Math.max(2 * scale, (Math.max(0, ...part) / loudest) * canvas.height);
    context.fillStyle = (bar + 0.5) / count <= played ? past : ahead;
    context.fillRect(bar * pitch, (canvas.height - tall) / 2, Math.max(scale, pitch * 0.62), tall);
  }
}
