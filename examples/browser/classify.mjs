// Classifies images with an exported tree (`python -m trunk_jax.export RUN --format onnx`) in the
// browser, and lights up each image's path through it. Nothing leaves the page.

import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs"
import { metadata } from "./metadata.mjs"
import { draw, light } from "./drawing.mjs"
import { fit, inkOf } from "./fitting.mjs"

const at = (id) => document.getElementById(id)
const sheet = at("sheet"), pen = sheet.getContext("2d", { willReadFrequently: true })
let tree // { session, classes, paths, names, exits, shape, options }

ort.env.wasm.numThreads = 1 // more need a server that sends headers for isolation

/** Says what happened; `state` is for programs: ready, answered or failed. */
function say(state, words) {
  document.body.dataset.state = state
  at(state === "ready" ? "about" : "answer").textContent = words
}

/** Runs a step, and shows in a line why it failed if it does. */
const guarded = (step) => async (...given) => {
  try {
    await step(...given)
  } catch (error) {
    say("failed", String(error.message ?? error).split("\n")[0])
  }
}

/** Takes the bytes of an exported tree. */
async function load(bytes) {
  const about = metadata(bytes)
  if (!about.tree) throw Error("this file is no exported tree")
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] })
  const { targets, nodes, exits } = JSON.parse(about.tree)
  const classes = JSON.parse(about.classes)
  const [, ...shape] = session.inputMetadata[0].shape
  tree = {
    session, classes, shape, exits,
    paths: classes.map((_, label) => targets[label]),
    names: Object.fromEntries(Object.entries(nodes).map(([name, path]) => [path.join(), name])),
    options: { lightStrokes: about.light_strokes === "yes", turned: about.turned === "yes" },
  }
  draw(at("tree"), tree)
  clear()
  say("ready", `${about.dataset}, ${about.recipe} ${about.backbone}: ${classes.length} classes, ` +
    `${about.test_images_right} test images right`)
}

/** Classifies what a canvas or an image shows, within `box` [x, y, side, side] if given. */
async function classify(source, box) {
  if (!tree) throw Error("no tree is loaded")
  const pixels = fit(source, tree.shape, { ...tree.options, box }, at("seen"))
  const image = new ort.Tensor("uint8", pixels, [1, ...tree.shape])
  const { label, probability, path } = await tree.session.run({ image })
  const way = Array.from(path.data, Number).filter((step) => step >= 0)
  light(at("tree"), way, tree.paths[Number(label.data[0])])
  // with exits the way is one from node to node, else it ends in the class
  const met = (tree.exits ? [...way, 0] : way).map((_, n) => tree.names[way.slice(0, n).join()])
  say("answered", `${tree.classes[Number(label.data[0])]} ` +
    `${(100 * probability.data[0]).toFixed(1)} % (${met.join(" > ")})`)
}

function clear() {
  pen.fillStyle = "white"
  pen.fillRect(0, 0, sheet.width, sheet.height)
  light(at("tree"))
  at("answer").textContent = ""
}

at("clear").onclick = clear
at("model").onchange = guarded(async ({ target }) =>
  load(new Uint8Array(await target.files[0].arrayBuffer())))
at("file").onchange = guarded(async ({ target }) => {
  const image = await createImageBitmap(target.files[0]).catch(() => {
    throw Error(`${target.files[0].name} is no image that this browser can read`)
  })
  await classify(image)
})

let last = null
const place = (event) => {
  const { left, top, width, height } = sheet.getBoundingClientRect()
  return [(event.clientX - left) * sheet.width / width, (event.clientY - top) * sheet.height / height]
}
sheet.onpointerdown = (event) => { last = place(event); stroke(event) }
sheet.onpointermove = (event) => { if (last) stroke(event) }
window.onpointerup = guarded(async () => {
  if (!last) return
  last = null
  await classify(sheet, inkOf(pen))
})
function stroke(event) {
  const next = place(event)
  Object.assign(pen, { lineWidth: 20, lineCap: "round", strokeStyle: "black" })
  pen.beginPath()
  pen.moveTo(...last)
  pen.lineTo(...next)
  pen.stroke()
  last = next
}

await guarded(async () => {
  const name = new URLSearchParams(location.search).get("tree") ?? "tree.onnx"
  const answer = await fetch(name)
  if (!answer.ok) throw Error(`there is no ${name} beside this page; choose a tree below`)
  await load(new Uint8Array(await answer.arrayBuffer()))
})()
