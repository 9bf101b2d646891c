// What an exported tree says of itself. An ONNX file is a protobuf message, whose field 14 holds
// pairs of texts; onnxruntime-web does not hand them out.

/** The metadata in the bytes of an ONNX file: an object of texts; empty if they are no such file. */
export function metadata(bytes) {
  const found = {}, text = new TextDecoder()
  for (const [field, entry] of fields(bytes)) {
    if (field !== 14) continue
    const pair = Object.fromEntries(fields(entry))
    found[text.decode(pair[1])] = text.decode(pair[2])
  }
  return found
}

/** The fields of a message that have a length: [number, bytes] each. */
function* fields(bytes) {
  let at = 0
  const varint = () => {
    let value = 0, scale = 1, byte
    do {
      byte = bytes[at++]
      value += (byte & 127) * scale
      scale *= 128
    } while (byte & 128)
    return value
  }
  while (at < bytes.length) {
    const key = varint(), kind = key & 7
    if (kind === 2) {
      const size = varint()
      yield [Math.floor(key / 8), bytes.subarray(at, at + size)]
      at += size
    } else if (kind === 0) varint()
    else at += kind === 1 ? 8 : 4
  }
}
