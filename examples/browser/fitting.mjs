// Any picture as the uint8 pixels that a tree takes, near to what trunk_jax.predict makes of a file:
// the middle is cut out, transparent parts are white, dark ink on paper becomes light strokes where
// the tree was trained on those, and rows and columns change places where its images have them so.

/**
 * The pixels of a picture, [height, width, channels], which are shown on the canvas `seen` as well.
 *
 * source: an image or a canvas. shape: [height, width, channels]. box: [x, y, width, height] of the
 * part to take; the middle if not given.
 */
export function fit(source, [height, width, channels], { lightStrokes, turned, box }, seen) {
  const [high, wide] = turned ? [width, height] : [height, width] // upright
  const { data } = scaled(source, wide, high, box ?? middle(source, wide / high))
  const invert = lightStrokes && lightBorder(data, wide, high)
  const pixels = new Uint8Array(height * width * channels)
  const shown = new ImageData(width, height)
  for (let y = 0; y < high; y++)
    for (let x = 0; x < wide; x++) {
      const colour = data.subarray(4 * (y * wide + x))
      const values = channels === 1 ? [grey(colour)] : colour.subarray(0, 3)
      const at = turned ? x * width + y : y * width + x
      for (let c = 0; c < channels; c++) pixels[at * channels + c] = invert ? 255 - values[c] : values[c]
      for (let c = 0; c < 4; c++)
        shown.data[4 * at + c] = c === 3 ? 255 : pixels[at * channels + (channels === 1 ? 0 : c)]
    }
  Object.assign(seen, { width, height })
  seen.getContext("2d", { willReadFrequently: true }).putImageData(shown, 0, 0)
  return pixels
}

/** Part [x, y, width, height] of a picture, on white, in this size. */
function scaled(source, width, height, box) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height })
  const context = canvas.getContext("2d", { willReadFrequently: true })
  context.fillStyle = "white"
  context.fillRect(0, 0, width, height)
  context.imageSmoothingQuality = "high"
  context.drawImage(source, ...box, 0, 0, width, height)
  return context.getImageData(0, 0, width, height)
}

/** Of what is drawn in black on white: the square around it, with a margin; null if nothing is. */
export function inkOf(context) {
  const { width, height } = context.canvas
  const { data } = context.getImageData(0, 0, width, height)
  let [left, top, right, bottom] = [width, height, -1, -1]
  for (let i = 0; i < width * height; i++)
    if (data[4 * i] < 128) {
      const x = i % width, y = Math.floor(i / width)
      left = Math.min(left, x), right = Math.max(right, x)
      top = Math.min(top, y), bottom = Math.max(bottom, y)
    }
  if (right < 0) return null
  const side = 1.3 * Math.max(right - left, bottom - top) + 1
  return [(left + right - side) / 2, (top + bottom - side) / 2, side, side]
}

/** As Pillow has it: luma of BT.601. */
const grey = ([red, green, blue]) => Math.round((299 * red + 587 * green + 114 * blue) / 1000)

/** The largest part in the middle of a picture that is `wide` times as wide as high. */
function middle(source, wide) {
  const across = Math.min(source.width, source.height * wide), high = across / wide
  return [(source.width - across) / 2, (source.height - high) / 2, across, high]
}

/** Whether half of the border is lighter than halfway between the darkest and the lightest. */
function lightBorder(data, width, height) {
  const all = [], border = []
  for (let i = 0; i < width * height; i++) {
    const x = i % width, y = Math.floor(i / width), value = grey(data.subarray(4 * i))
    all.push(value)
    if (x === 0 || y === 0 || x === width - 1 || y === height - 1) border.push(value)
  }
  const low = Math.min(...all), high = Math.max(...all)
  const halfway = high - low < 16 ? 127.5 : (low + high) / 2
  return border.sort((a, b) => a - b)[Math.floor(border.length / 2)] > halfway
}
