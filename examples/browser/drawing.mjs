// The tree as an SVG: its root on the left, a row for each class, and the path of an image lit.

const ROW = 16, COLUMN = 130, MARGIN = 12

/** Draws a tree, `{ classes, paths, names }`: of each label its path, and nodes' names by path. */
export function draw(svg, { classes, paths, names }) {
  const depth = Math.max(...paths.map((path) => path.length))
  const order = [...paths.keys()].sort((a, b) => compare(paths[a], paths[b]))
  const rows = Object.fromEntries(order.map((label, row) => [paths[label].join(), row]))
  const centre = (path) => {
    const below = Object.keys(rows).filter((leaf) => starts(leaf, path)).map((leaf) => rows[leaf])
    return MARGIN + ROW * (below.reduce((sum, row) => sum + row, 0) / below.length)
  }
  const across = (path) => MARGIN + COLUMN * path.length
  const prefixes = new Set(paths.flatMap((path) => path.map((_, n) => path.slice(0, n + 1).join())))
  const shapes = []
  for (const key of prefixes) {
    const path = key.split(",").map(Number), above = path.slice(0, -1)
    const [x, y] = [across(path), centre(path)], [x0, y0] = [across(above), centre(above)]
    const middle = (x + x0) / 2
    shapes.push(`<path data-path="${key}" d="M${x0},${y0}C${middle},${y0} ${middle},${y} ${x},${y}"/>`)
  }
  for (const key of ["", ...prefixes]) {
    const path = key ? key.split(",").map(Number) : []
    const label = order.find((each) => paths[each].join() === key)
    const [x, y] = [across(path), centre(path)]
    shapes.push(`<circle data-path="${key}" cx="${x}" cy="${y}" r="${label === undefined ? 6 : 4}"/>`)
    if (label !== undefined)
      shapes.push(`<text data-path="${key}" x="${x + 9}" y="${y + 4}">${plain(classes[label])}</text>`)
    else if (key) shapes.push(`<text data-path="${key}" x="${x - 8}" y="${y - 9}">${plain(names[key])}</text>`)
  }
  svg.innerHTML = shapes.join("")
  const [width, height] = [COLUMN * (depth + 1), 2 * MARGIN + ROW * classes.length]
  for (const [name, value] of Object.entries({ width, height, viewBox: `0 0 ${width} ${height}` }))
    svg.setAttribute(name, value)
}

/** Lights up a path and the class `leaf` that it led to, step by step; without them all are out. */
export function light(svg, path, leaf) {
  for (const part of svg.children) {
    const key = part.dataset.path, depth = key ? key.split(",").length : 0
    const passed = path && starts(path.join(), key ? key.split(",") : [])
    // an image that stopped early knows its class without the way to it
    const answer = leaf && key === leaf.join() && part.tagName !== "path"
    part.classList.toggle("lit", Boolean(passed || answer))
    part.style.transitionDelay = `${0.4 * depth}s`
  }
}

const compare = (a, b) => {
  const n = [...a.keys()].find((place) => a[place] !== b[place])
  return n === undefined ? a.length - b.length : a[n] - b[n]
}
const starts = (key, path) => `${key},`.startsWith(path.length ? `${path.join()},` : "")
const plain = (words) => words.replace(/[&<]/g, (c) => ({ "&": "&amp;", "<": "&lt;" })[c])
