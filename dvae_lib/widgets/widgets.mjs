// The explorers' front end: encoder, sampler and decoder in plain JavaScript, drawn on canvas. Nothing is fetched.
//
// The exported functions compute and touch no page, so that they run under node; the explorers below them draw. What
// every explorer has around it, and `render`, are in shell.mjs. Python's side, beside this file, sends the weights and
// the controls. Explained in the chapter "Play: noise and code".

export const SIZE = 24; // pixels, height and width of a picture
export const PIXELS = SIZE * SIZE;
export const SIDE = 9; // pixels, of a square
export const POSITIONS = SIZE - SIDE + 1; // of a square's corner, along each axis
export const NOISES = ["flip", "mask", "salt and pepper", "Gaussian"];

// ---------------------------------------------------------------------------------------------------------- networks

/** Read layers from the bytes that Python packed: for each of them the rows' scales and biases, 32-bit floats, then its
 * weights, 8-bit integers, column by column. `shapes` gives each layer's [rows, columns]. */
export function readLayers(bytes, shapes) {
  let offset = 0;
  const take = (length) => {
    if (offset + length > bytes.byteLength) throw new RangeError("the weights end too early");
    offset += length;
    const first = bytes.byteOffset + offset - length;
    return bytes.buffer.slice(first, first + length); // a copy, hence aligned
  };
  const layers = shapes.map(([rows, columns]) => {
    const scales = new Float32Array(take(4 * rows));
    const biases = new Float32Array(take(4 * rows));
    const integers = new Int8Array(take(rows * columns));
    const weights = new Float32Array(rows * columns);
    for (let i = 0; i < weights.length; i++) weights[i] = scales[i % rows] * integers[i];
    return { rows, columns, weights, biases };
  });
  if (offset !== bytes.byteLength) throw new RangeError("the weights do not end where they should");
  return layers;
}

/** Read `count` networks, all of the same `shapes`. */
export function readNetworks(bytes, shapes, count, activation = "relu") {
  const layers = readLayers(bytes, Array.from({ length: count }, () => shapes).flat());
  const of = (k) => layers.slice(k * shapes.length, (k + 1) * shapes.length);
  return Array.from({ length: count }, (_, k) => new Network(of(k), activation));
}

/** Write weights * input + biases into `output`, with a ReLU where asked for. The weights lie column by column, so that
 * an input of 0, as most are, costs nothing. */
export function linear({ rows, columns, weights, biases }, input, output, relu) {
  output.set(biases);
  for (let column = 0; column < columns; column++) {
    const value = input[column];
    if (value === 0) continue;
    for (let row = 0, i = column * rows; row < rows; row++, i++) output[row] += weights[i] * value;
  }
  if (relu) for (let row = 0; row < rows; row++) if (output[row] < 0) output[row] = 0;
}

/** An auto-encoder of `mlp_vae`. It computes into arrays of its own, so that a pass allocates nothing. */
export class Network {
  constructor(layers, activation = "relu") {
    Object.assign(this, { layers, activation });
    this.hidden = [0, 1].map(() => new Float32Array(layers[0].rows));
    this.logits = new Float32Array(layers[6].rows);
    this.size = Math.sqrt(layers[6].rows); // pixels, height and width of a picture
    this.codes = layers[2].rows; // entries of a code
  }

  /** Write a hidden layer's answer to `input` into `output`. */
  hiddenLayer(layer, input, output) {
    linear(layer, input, output, this.activation === "relu");
    if (this.activation === "tanh") for (let i = 0; i < output.length; i++) output[i] = Math.tanh(output[i]);
  }

  /** Write mean and log-variance of q(z|image) into `posterior`. */
  encode(image, posterior) {
    const [first, second] = this.hidden;
    this.hiddenLayer(this.layers[0], image, first);
    this.hiddenLayer(this.layers[1], first, second);
    linear(this.layers[2], second, posterior.mean, false);
    linear(this.layers[3], second, posterior.logVariance, false);
  }

  /** Write the pixels' probabilities given `code` into `probabilities`, and their logits into `logits` if wanted. */
  decode(code, probabilities, logits = this.logits) {
    const [first, second] = this.hidden;
    this.hiddenLayer(this.layers[4], code, first);
    this.hiddenLayer(this.layers[5], first, second);
    linear(this.layers[6], second, logits, false);
    for (let i = 0; i < logits.length; i++) probabilities[i] = 1 / (1 + Math.exp(-logits[i]));
  }
}

/** Cross-entropy of `image` and a decoded picture, -ln p(image|code), in nats. */
export function crossEntropy(logits, image) {
  let sum = 0;
  for (let i = 0; i < image.length; i++) {
    const logit = logits[i];
    sum += Math.max(logit, 0) - logit * image[i] + Math.log1p(Math.exp(-Math.abs(logit)));
  }
  return sum;
}

export const newPosterior = (codes = 2) => ({ mean: new Float32Array(codes), logVariance: new Float32Array(codes) });

// ---------------------------------------------------------------------------------------- random numbers and pictures

/** A generator of uniform numbers in [0, 1), mulberry32: the same seed gives the same numbers everywhere. */
export function uniforms(seed) {
  let state = Math.imul(seed + 1, 0x9e3779b9);
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/** A standard normal number from two uniform ones (Box and Muller). */
export const normal = (u, v) => Math.sqrt(-2 * Math.log(1 - u)) * Math.cos(2 * Math.PI * v);

/** Write `image` with the noise NOISES[kind] into `out`. The same two random numbers are drawn for a pixel whatever
 * the kind and the level, so that at one seed a higher level strikes the same pixels and more. */
export function corrupt(kind, level, image, seed, out) {
  const uniform = uniforms(seed);
  for (let i = 0; i < image.length; i++) {
    const u = uniform();
    const v = uniform();
    if (kind === 3) out[i] = image[i] + level * normal(u, v);
    else if (u >= level) out[i] = image[i];
    else if (kind === 0) out[i] = 1 - image[i];
    else if (kind === 1) out[i] = 0;
    else out[i] = v < 0.5 ? 1 : 0;
  }
}

/** Write a draw from the posterior, mean + exp(logVariance / 2) * eps, into `code`. */
export function sample({ mean, logVariance }, seed, code) {
  const uniform = uniforms(seed + 0x10000);
  for (let j = 0; j < code.length; j++) code[j] = mean[j] + Math.exp(logVariance[j] / 2) * normal(uniform(), uniform());
}

/** Write the square whose corner is at (`row`, `column`) into `out`. */
export function paintSquare(row, column, out) {
  out.fill(0);
  for (let y = row; y < row + SIDE; y++) out.fill(1, y * SIZE + column, y * SIZE + column + SIDE);
}

/** The 256 squares, in Python's order: number 16 * row + column. */
export function allSquares() {
  return Array.from({ length: POSITIONS * POSITIONS }, (_, i) => {
    const image = new Float32Array(PIXELS);
    paintSquare(Math.floor(i / POSITIONS), i % POSITIONS, image);
    return image;
  });
}

/** A binary picture as hexadecimal digits, four pixels a digit, and back. */
export function toHex(image) {
  let text = "";
  for (let i = 0; i < image.length; i += 4) {
    text += (8 * image[i] + 4 * image[i + 1] + 2 * image[i + 2] + image[i + 3]).toString(16);
  }
  return text;
}

export function fromHex(text, out) {
  for (let i = 0; i < out.length; i++) out[i] = (parseInt(text[i >> 2], 16) >> (3 - (i & 3))) & 1;
}

const sums = new Int16Array((SIZE + 1) * (SIZE + 1)); // set pixels above and left of each corner

/** The square that overlaps most with the pixels of at least 1/2: its corner, the intersection over union, and the
 * number of such pixels. */
export function bestSquare(picture) {
  const width = SIZE + 1;
  for (let y = 0; y < SIZE; y++) {
    for (let x = 0, line = 0; x < SIZE; x++) {
      line += picture[y * SIZE + x] >= 0.5 ? 1 : 0;
      sums[(y + 1) * width + x + 1] = sums[y * width + x + 1] + line;
    }
  }
  const total = sums[SIZE * width + SIZE];
  const best = { row: 0, column: 0, overlap: -1, total };
  for (let y = 0; y < POSITIONS; y++) {
    for (let x = 0; x < POSITIONS; x++) {
      const [top, bottom] = [y * width + x, (y + SIDE) * width + x];
      const shared = sums[bottom + SIDE] - sums[bottom] - sums[top + SIDE] + sums[top];
      const overlap = shared / (total + SIDE * SIDE - shared);
      if (overlap > best.overlap) Object.assign(best, { row: y, column: x, overlap });
    }
  }
  return best;
}

/** What a picture shows, in words. */
export function inWords(picture) {
  const { row, column, overlap, total } = bestSquare(picture);
  if (total === 0) return "no pixel set";
  if (overlap === 1) return `the square at row ${row}, column ${column}`;
  if (overlap >= 0.5) return `nearly the square at row ${row}, column ${column}, overlap ${percent(overlap)}`;
  return `no square, best overlap ${percent(overlap)}`;
}

/** How many pixels of at least 1/2 in one picture are below it in the other. */
export function wrongPixels(picture, truth) {
  let count = 0;
  for (let i = 0; i < truth.length; i++) count += picture[i] >= 0.5 !== truth[i] >= 0.5 ? 1 : 0;
  return count;
}

export const percent = (fraction) => `${Math.floor(100 * fraction)}\u00a0%`;
export const decimal = (value) => value.toFixed(2).replace("-", "\u2212");
export const pair = (code) => `(${decimal(code[0])}, ${decimal(code[1])})`;
export const clamp = (value, limit) => Math.min(Math.max(value, -limit), limit);
export const nameOf = (level) => (level === 0 ? "VAE" : `DVAE, p = ${level}`);

// ------------------------------------------------------------------------------------------------------------ canvas

export const GROUND = "#101418";
export const EXTRA = [230, 159, 0]; // orange: set, and should not be
export const MISSING = [86, 180, 233]; // blue: not set, and should be
// a colour as it lies in the canvas's memory
export const rgba = (red, green, blue) => ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
export const GREY = Uint32Array.from({ length: 256 }, (_, i) => rgba(i, i, i));
export const DIM = Uint32Array.from({ length: 256 }, (_, i) => rgba(16 + 0.42 * i, 20 + 0.42 * i, 24 + 0.42 * i));
export const BRIGHT = Uint32Array.from({ length: 256 }, (_, i) => rgba(16 + 0.75 * i, 20 + 0.75 * i, 24 + 0.75 * i));
export const PLANE = 480; // pixels of the code plane's canvas
const ZOOM = 8; // of the inset of a code plane

/** Make an element: `make("p", {class: "note"}, child, "text")`; what is a function listens. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** The title of a part of an explorer: no heading, since the page's headings are its text's. */
export const makeTitle = (text) => make("p", { class: "dvae-title" }, text);

/** A canvas of 24 x 24 pixels under a title, enlarged by the page's style. `columns` is how many pictures it holds,
 * `size` how many pixels each is high and wide. */
export function makePicture(title, columns = 1, size = SIZE) {
  const width = columns * size + columns - 1;
  const canvas = make("canvas", { width, height: size, class: "dvae-picture", role: "img", "aria-label": title });
  const context = canvas.getContext("2d");
  const data = context.createImageData(width, size);
  const memory = new Uint32Array(data.data.buffer); // transparent between the pictures
  return {
    canvas,
    element: make("figure", { class: "dvae-figure" }, canvas, make("figcaption", {}, title)),
    /** Draw grey values, those below 0 black and those above 1 white. */
    draw(values, column = 0) {
      for (let y = 0, i = 0; y < size; y++) {
        for (let x = 0, o = y * width + column * (size + 1); x < size; x++, i++, o++) {
          memory[o] = GREY[Math.max(0, Math.min(255, Math.round(255 * values[i])))];
        }
      }
      context.putImageData(data, 0, 0);
    },
    /** Mark a pixel with the keyboard's colour. */
    mark(x, y) {
      memory[y * width + x] = rgba(...(memory[y * width + x] === GREY[0] ? [140, 90, 0] : [255, 200, 60]));
      context.putImageData(data, 0, 0);
    },
    /** Draw black and white at 1/2, in colour where that is not `truth`. */
    drawBinary(values, truth) {
      for (let i = 0; i < truth.length; i++) {
        const [set, wanted] = [values[i] >= 0.5, truth[i] >= 0.5];
        memory[i] = set === wanted ? GREY[set ? 255 : 0] : rgba(...(set ? EXTRA : MISSING));
      }
      context.putImageData(data, 0, 0);
    },
  };
}

/** How many pictures of this size the manifold holds along each axis. */
const tilesOf = (size) => Math.floor(PLANE / size);

/** Write the manifold, pictures side by side in the 256 colours of `shades`, into the memory of a square canvas that
 * just holds them. */
export function paintManifold(network, limit, memory, shades = DIM) {
  const { size } = network;
  const tiles = tilesOf(size);
  const [code, picture] = [new Float32Array(2), new Float32Array(size * size)];
  for (let row = 0; row < tiles; row++) {
    for (let column = 0; column < tiles; column++) {
      code[0] = limit * ((2 * column + 1) / tiles - 1);
      code[1] = limit * (1 - (2 * row + 1) / tiles);
      network.decode(code, picture);
      for (let i = 0; i < picture.length; i++) {
        const y = row * size + Math.floor(i / size);
        memory[y * tiles * size + column * size + (i % size)] = shades[Math.round(255 * picture[i])];
      }
    }
  }
}

/** What all explorers of a page share of a network: the codes of the 256 squares, the manifold, the dots. */
export class Sheet {
  constructor(network, level) {
    Object.assign(this, { network, level, name: nameOf(level), layers: new Map() });
  }

  get codes() {
    return (this.ownCodes ??= allSquares().map((image) => {
      const posterior = newPosterior();
      this.network.encode(image, posterior);
      return posterior.mean;
    }));
  }

  /** The manifold, or the squares' codes as dots, over [-limit, limit]^2, drawn once. `unit` is a point of the page. */
  layer(what, limit, unit) {
    const key = `${what} ${limit} ${unit}`;
    if (!this.layers.has(key)) {
      const canvas = make("canvas", { width: PLANE, height: PLANE });
      this[what](canvas.getContext("2d"), limit, unit);
      this.layers.set(key, canvas);
    }
    return this.layers.get(key);
  }

  /** The pictures of the plane, dimmed where dots are to stand out on them: none do on those of other sizes. */
  manifold(context, limit) {
    const { size } = this.network;
    const width = size * tilesOf(size);
    const data = context.createImageData(width, width);
    paintManifold(this.network, limit, new Uint32Array(data.data.buffer), size === SIZE ? DIM : BRIGHT);
    context.putImageData(data, 0, 0);
    if (width < PLANE) context.drawImage(context.canvas, 0, 0, width, width, 0, 0, PLANE, PLANE);
  }

  dots(context, limit, unit) {
    this.codes.forEach((code, i) => {
      const [x, y] = place(code, { limit });
      context.beginPath();
      context.arc(x, y, Math.min(2.6 * unit, 5), 0, 2 * Math.PI);
      context.fillStyle = colourOf(Math.floor(i / POSITIONS), i % POSITIONS);
      context.fill();
      context.lineWidth = 1;
      context.strokeStyle = GROUND;
      context.stroke();
    });
  }
}

/** What the dots' colours mean, after `text`. */
export function makeKey(text) {
  const canvas = make("canvas", { width: POSITIONS, height: POSITIONS, "aria-hidden": "true" });
  const context = canvas.getContext("2d");
  for (let i = 0; i < POSITIONS * POSITIONS; i++) {
    const [row, column] = [Math.floor(i / POSITIONS), i % POSITIONS];
    context.fillStyle = colourOf(row, column);
    context.fillRect(column, row, 1, 1);
  }
  const meaning = "A dot is the code of a square; its colour says where the square lies.";
  return make("p", { class: "dvae-key" }, canvas, text + meaning);
}

/** A square's colour: blends of four colours at the corners of the 16 x 16 positions. */
export function colourOf(row, column) {
  const corners = [[86, 180, 233], [240, 228, 66], [0, 190, 130], [235, 110, 60]];
  const [down, right] = [row / (POSITIONS - 1), column / (POSITIONS - 1)];
  const shares = [(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right];
  const mix = [0, 1, 2].map((k) => Math.round(shares.reduce((sum, share, j) => sum + share * corners[j][k], 0)));
  return `rgb(${mix.join(",")})`;
}

/** Where a code lies on a square part of a canvas that shows the codes within `limit` of `centre`; one beyond the edge
 * is drawn at the edge. */
export function place(code, { limit, centre = [0, 0], left = 0, top = 0, size = PLANE }) {
  const [x, y] = [0, 1].map((j) => clamp(code[j] - centre[j], limit) / limit);
  return [left + ((1 + x) * size) / 2, top + ((1 - y) * size) / 2];
}

/** A code plane: manifold and dots as a ground, with marks on it. The ground is for a `view` that is complete. */
export function makePlane(title, limit, view) {
  const canvas = make("canvas", { width: PLANE, height: PLANE, class: "dvae-plane", role: "img", "aria-label": title });
  const context = canvas.getContext("2d");
  const edge = decimal(limit).replace(/\.?0+$/, "");
  const ends = [`\u2212${edge}`, "z\u2081 \u2192  z\u2082 \u2191", edge].map((text) => make("span", {}, text));
  const ticks = make("div", { class: "dvae-ticks", "aria-hidden": "true" }, ...ends);
  let unit = 1; // pixels of the canvas in a point of the page, in steps of a quarter
  const resized = () => {
    const found = Math.round((4 * PLANE) / Math.max(canvas.clientWidth, PLANE / 4)) / 4;
    if (found !== unit) [unit] = [found, view.redraw()];
  };
  new ResizeObserver(resized).observe(canvas);
  const stroke = (width, colour) => Object.assign(context, { lineWidth: width * unit, strokeStyle: colour }).stroke();
  let part = { limit }; // that is drawn on: all of it, or the inset
  const outlined = (colour, width = 2) => {
    stroke(width + 2, GROUND);
    stroke(width, colour);
  };
  return {
    canvas,
    element: make("div", { class: "dvae-plane-box" }, canvas, ticks),
    clear(sheet, { manifold = true, dots = true } = {}) {
      context.fillStyle = GROUND;
      context.fillRect(0, 0, PLANE, PLANE);
      if (!view.complete) return;
      if (manifold) context.drawImage(sheet.layer("manifold", limit, 1), 0, 0);
      if (dots) context.drawImage(sheet.layer("dots", limit, unit), 0, 0);
    },
    line(from, to, colour) {
      context.beginPath();
      context.moveTo(...place(from, part));
      context.lineTo(...place(to, part));
      outlined(colour, 1.5);
    },
    point(code, colour, radius = 7) {
      const [x, y] = place(code, part);
      context.beginPath();
      context.arc(x, y, radius * unit, 0, 2 * Math.PI);
      outlined(colour);
    },
    /** The ellipse of two standard deviations, never smaller than can be seen. */
    ellipse({ mean, logVariance }, colour) {
      const { size = PLANE, limit: reach } = part;
      const radius = (j) => Math.max(2 * unit, (Math.exp(logVariance[j] / 2) * size) / reach);
      context.beginPath();
      context.ellipse(...place(mean, part), radius(0), radius(1), 0, 0, 2 * Math.PI);
      outlined(colour);
    },
    /** Draw once more, enlarged around `centre`, in the corner that is farther from it. */
    inset(centre, draw) {
      const size = 0.38 * PLANE;
      const [left, top] = [centre[0] < 0 ? PLANE - size : 0, centre[1] > 0 ? PLANE - size : 0];
      part = { limit: limit / ZOOM, centre, left, top, size };
      context.save();
      context.beginPath();
      context.rect(left, top, size, size);
      context.fillStyle = GROUND;
      context.fill();
      context.clip();
      draw();
      context.beginPath();
      context.rect(left, top, size, size);
      stroke(2, "#8a939c");
      context.restore();
      part = { limit };
    },
  };
}

/** Call `move(x, y)`, each in [0, 1], for a pointer that is down on `canvas`: a mouse, a pen or a finger. */
export function followPointer(canvas, move) {
  const report = (event, first) => {
    const box = canvas.getBoundingClientRect();
    move((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height, first);
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    report(event, true);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (canvas.hasPointerCapture(event.pointerId)) report(event, false);
  });
}

export const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

/** Call `move(right, up, event)` for the arrow keys. */
export function followArrows(canvas, move) {
  canvas.tabIndex = 0;
  canvas.addEventListener("keydown", (event) => {
    if (!(event.key in ARROWS) || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    move(...ARROWS[event.key], event);
  });
}

// --------------------------------------------------------------------------------------------------------- explorers

export const WHITE = "#ffffff";
export const CLEAN = "#009e73"; // green: what belongs to the clean picture
export const NOISY = "#f0e442"; // yellow: what belongs to the corrupted one

/** Each explorer builds its part of the page in `root` and returns the traits it follows and a function that draws. */
export const EXPLORERS = {
  latent_map: latentMap,
  denoise,
  training_noise: trainingNoise,
  interpolate,
  train_again: trainAgain,
};

/** `words` says what a picture shows; `dots` whether the planes hold the codes of the squares. */
export function latentMap({ get, set, root, compared, say, view }, { words = inWords, dots = true } = {}) {
  const limit = get("limit");
  const code = new Float32Array(2);
  const moveTo = (first, second) => set({ z1: round(clamp(first, limit)), z2: round(clamp(second, limit)) });
  const round = (value) => Math.round(100 * value) / 100;
  const panels = compared().map((sheet) => {
    const plane = makePlane(`Code plane of the ${sheet.name}`, limit, view);
    const { size } = sheet.network;
    const picture = makePicture("decoded picture", 1, size);
    const note = make("p", { class: "dvae-note" });
    Object.entries({
      role: "slider",
      "aria-roledescription": "two-dimensional slider",
      "aria-label": `Code of the ${sheet.name}; the arrow keys move it, with shift in larger steps`,
      "aria-valuemin": -limit,
      "aria-valuemax": limit,
    }).forEach(([name, value]) => plane.canvas.setAttribute(name, value));
    plane.canvas.classList.add("dvae-drag");
    followPointer(plane.canvas, (x, y) => moveTo(limit * (2 * x - 1), limit * (1 - 2 * y)));
    followArrows(plane.canvas, (right, up, event) => {
      const step = event.shiftKey ? 0.5 : 0.05;
      moveTo(get("z1") + step * right, get("z2") + step * up);
    });
    const result = make("div", { class: "dvae-result" }, picture.element, note);
    root.append(make("section", { class: "dvae-panel" }, makeTitle(sheet.name), plane.element, result));
    return { sheet, plane, picture, note, probabilities: new Float32Array(size * size) };
  });
  const help = "Drag on a plane, or use the sliders. ";
  root.append(dots ? makeKey(help) : make("p", { class: "dvae-key" }, help));
  root.classList.add("dvae-pair");
  return {
    traits: ["z1", "z2", "manifold", "dots"],
    draw() {
      code[0] = get("z1");
      code[1] = get("z2");
      for (const { sheet, plane, picture, note, probabilities } of panels) {
        sheet.network.decode(code, probabilities);
        plane.clear(sheet, { manifold: get("manifold"), dots: dots && get("dots") });
        plane.point(code, WHITE);
        plane.canvas.setAttribute("aria-valuenow", code[0]);
        plane.canvas.setAttribute("aria-valuetext", pair(code));
        picture.draw(probabilities);
        note.textContent = words(probabilities);
      }
      const seen = panels.map(({ sheet, note }) => `${sheet.name}: ${note.textContent}`);
      say(`Code ${pair(code)}. ${seen.join(". ")}.`);
    },
  };
}

/** The clean picture that an explorer starts from: the square of its sliders, or what the reader draws. */
export function cleanPicture({ get, set }) {
  const image = new Float32Array(PIXELS);
  return {
    image,
    read() {
      if (get("drawing")) fromHex(get("drawing"), image);
      else paintSquare(get("row"), get("column"), image);
    },
    write: () => set({ drawing: toHex(image) }),
  };
}

/** Buttons that empty the picture, and that go back to what the controls choose, which is called `kind`. */
export const drawingButtons = (set, kind = "square", pixels = PIXELS) => [
  makeButton("Empty picture", () => set({ drawing: toHex(new Float32Array(pixels)) })),
  makeButton(`Back to the ${kind}`, () => set({ drawing: "" })),
];

/** What is chosen by one of these controls takes the place of what was drawn. */
export function dropDrawing({ model, get, set }, names = ["row", "column"]) {
  for (const name of names) model.on(`change:${name}`, () => get("drawing") && set({ drawing: "" }));
}

function denoise({ get, set, root, compared, say, model, view }) {
  const limit = get("limit");
  const clean = cleanPicture({ get, set });
  const noisy = new Float32Array(PIXELS);
  const editor = makePicture("clean picture: draw on it");
  const input = makePicture("input of the encoder");
  const markCursor = makeEditable(editor, clean, view.redraw);
  const tools = make(
    "div",
    { class: "dvae-tools" },
    freshNoise({ get, set }),
    ...drawingButtons(set),
    make(
      "p",
      { class: "dvae-legend" },
      swatch(CLEAN, "posterior of the clean picture"),
      swatch(NOISY, "posterior of the input"),
      swatch(`rgb(${EXTRA})`, "pixel too many"),
      swatch(`rgb(${MISSING})`, "pixel missing"),
      swatch(GROUND, `inset: ${ZOOM} times as large`),
    ),
  );
  root.append(make("div", { class: "dvae-inputs" }, editor.element, input.element, tools));
  const panels = compared().map((sheet) => makeReconstruction(sheet, limit, view));
  root.append(make("div", { class: "dvae-pair" }, ...panels.map((panel) => panel.element)));
  dropDrawing({ model, get, set });
  return {
    traits: ["row", "column", "drawing", "kind_of_noise", "level", "seed", "draw_code"],
    draw() {
      clean.read();
      corrupt(get("kind_of_noise"), get("level"), clean.image, get("seed"), noisy);
      editor.draw(clean.image);
      markCursor();
      input.draw(noisy);
      const seen = panels.map((panel) => panel.draw(clean.image, noisy, get("draw_code") ? get("seed") : null));
      say(`Input with ${wrongPixels(noisy, clean.image)} wrong pixels. ${seen.join(". ")}.`);
    },
  };
}

/** A button; `click` listens. */
export const makeButton = (text, click, attributes = {}) =>
  make("button", { type: "button", class: "dvae-button", click, ...attributes }, text);

export const freshNoise = ({ get, set }) => makeButton("Fresh noise", () => set({ seed: (get("seed") + 1) % 10000 }));

export const swatch = (colour, text) =>
  make("span", { class: "dvae-swatch" }, make("i", { style: `background:${colour}` }), text);

/** Posterior, probability map and reconstruction of one network, with the error as a number. */
export function makeReconstruction(sheet, limit, view) {
  const plane = makePlane(`Posterior of the ${sheet.name} in the code plane`, limit, view);
  const map = makePicture("probabilities");
  const binary = makePicture("at 1/2");
  const [wrong, nats] = [make("strong"), make("strong")];
  const note = make("p", { class: "dvae-note" }, wrong, " wrong pixels of 576; cross-entropy ", nats, " nats");
  const pictures = make("div", { class: "dvae-column" }, map.element, binary.element);
  const [ofClean, ofNoisy, code] = [newPosterior(), newPosterior(), new Float32Array(2)];
  const [probabilities, logits] = [new Float32Array(PIXELS), new Float32Array(PIXELS)];
  return {
    element: make(
      "section",
      { class: "dvae-panel" },
      makeTitle(sheet.name),
      make("div", { class: "dvae-beside" }, plane.element, pictures),
      note,
    ),
    /** Draw, and return in words what is seen. With a seed the code is drawn from the posterior, else its mean. */
    draw(image, input, seed) {
      const { network } = sheet;
      network.encode(image, ofClean);
      network.encode(input, ofNoisy);
      if (seed === null) code.set(ofNoisy.mean);
      else sample(ofNoisy, seed, code);
      network.decode(code, probabilities, logits);
      plane.clear(sheet, { dots: false });
      const marks = () => {
        plane.line(ofClean.mean, code, WHITE);
        plane.ellipse(ofClean, CLEAN);
        plane.ellipse(ofNoisy, NOISY);
        if (seed !== null) plane.point(code, WHITE, 2);
      };
      marks();
      plane.inset(ofNoisy.mean, marks);
      map.draw(probabilities);
      binary.drawBinary(probabilities, image);
      wrong.textContent = wrongPixels(probabilities, image);
      nats.textContent = crossEntropy(logits, image).toFixed(1);
      return `${sheet.name}: ${inWords(probabilities)}, ${wrong.textContent} wrong pixels`;
    },
  };
}

/** Let the reader paint on a picture, with a pointer or with arrow keys and space. Returns a function that marks the
 * keyboard's pixel, for as long as the keyboard is in use here. The brush paints the pixel that it is on, and those
 * whose middles are within its radius. */
export function makeEditable(picture, clean, redraw, brush = 0) {
  const { canvas } = picture;
  const size = canvas.height;
  const cursor = { x: size >> 1, y: size >> 1 };
  let paint = 1;
  let last = [0, 0];
  const label = (text) => canvas.setAttribute("aria-label", `Picture to draw on. ${text}`);
  const dab = (x, y) => {
    for (let row = 0; row < size; row++) {
      for (let column = 0; column < size; column++) {
        const under = column === Math.floor(x) && row === Math.floor(y);
        const near = Math.hypot(column + 0.5 - x, row + 0.5 - y) <= brush;
        if (under || near) clean.image[row * size + column] = paint;
      }
    }
  };
  const describe = () => {
    const state = clean.image[cursor.y * size + cursor.x] ? "set" : "not set";
    label(`Row ${cursor.y}, column ${cursor.x}, ${state}`);
    redraw();
  };
  canvas.setAttribute("role", "application");
  label("Arrow keys move the cursor, space changes the pixel");
  canvas.classList.add("dvae-drag");
  followPointer(canvas, (x, y, first) => {
    const point = [x * size, y * size];
    const [column, row] = point.map((value) => Math.min(Math.max(Math.floor(value), 0), size - 1)); // or the nearest
    if (first) {
      paint = 1 - clean.image[row * size + column];
      last = point;
    }
    const steps = Math.max(1, Math.ceil(2 * Math.hypot(point[0] - last[0], point[1] - last[1])));
    for (let step = 1; step <= steps; step++) {
      dab(...[0, 1].map((axis) => last[axis] + (step / steps) * (point[axis] - last[axis])));
    }
    last = point;
    Object.assign(cursor, { x: column, y: row });
    clean.write();
  });
  followArrows(canvas, (right, up) => {
    cursor.x = (cursor.x + right + size) % size;
    cursor.y = (cursor.y - up + size) % size;
    describe();
  });
  canvas.addEventListener("keydown", (event) => {
    if (event.key !== " ") return;
    event.preventDefault();
    paint = 1 - clean.image[cursor.y * size + cursor.x];
    dab(cursor.x + 0.5, cursor.y + 0.5);
    clean.write();
    describe();
  });
  for (const name of ["focus", "blur"]) canvas.addEventListener(name, redraw);
  return () => canvas.matches(":focus-visible") && picture.mark(cursor.x, cursor.y);
}

const BAR_DRAWS = 16; // corrupted inputs behind each bar
const FIRST_BAR_DRAW = 19985; // of their seeds

function trainingNoise({ get, set, root, sheets, say, later, view }) {
  const limit = get("limit");
  const clean = cleanPicture({ get, set });
  const noisy = new Float32Array(PIXELS);
  const [before, after] = [makePicture("clean picture"), makePicture("input of the encoder")];
  const plane = makePlane("Code plane", limit, view);
  const title = makeTitle("");
  const [map, binary] = [makePicture("probabilities"), makePicture("at 1/2")];
  const note = make("p", { class: "dvae-note" });
  const bars = sheets.map(({ level }, index) => {
    const [bar, value] = [make("i"), make("b")];
    const choose = () => set({ index });
    return { bar, value, element: make("li", { click: choose }, value, bar, make("span", {}, String(level))) };
  });
  const chart = make(
    "figure",
    { class: "dvae-chart" },
    make("ol", { class: "dvae-bars" }, ...bars.map(({ element }) => element)),
    make("figcaption", {}, `wrong pixels by training noise p: this picture, mean of ${BAR_DRAWS} noisy inputs`),
  );
  const tools = make("div", { class: "dvae-tools" }, freshNoise({ get, set }));
  const pictures = make("div", { class: "dvae-four" }, ...[before, after, map, binary].map(({ element }) => element));
  root.append(
    make("section", { class: "dvae-panel" }, title, plane.element, makeKey("")),
    make("section", { class: "dvae-panel" }, pictures, note, tools, chart),
  );
  root.classList.add("dvae-pair");
  const [ofClean, ofNoisy, probabilities] = [newPosterior(), newPosterior(), new Float32Array(PIXELS)];
  const another = new Float32Array(PIXELS);
  const measure = () => {
    const means = sheets.map(({ network }) => {
      let sum = 0;
      for (let draw = 0; draw < BAR_DRAWS; draw++) {
        corrupt(0, get("level"), clean.image, FIRST_BAR_DRAW + BAR_DRAWS * get("seed") + draw, another);
        network.encode(another, ofNoisy);
        network.decode(ofNoisy.mean, probabilities);
        sum += wrongPixels(probabilities, clean.image);
      }
      return sum / BAR_DRAWS;
    });
    const most = Math.max(10, ...means);
    means.forEach((mean, i) => {
      bars[i].bar.style.height = `${(100 * mean) / most}%`;
      bars[i].value.textContent = mean < 10 ? mean.toFixed(1) : Math.round(mean);
    });
    const text = means.map((mean, i) => `${mean.toFixed(1)} at p = ${sheets[i].level}`).join(", ");
    chart.setAttribute("aria-label", `Mean number of wrong pixels: ${text}`);
  };
  return {
    traits: ["index", "row", "column", "level", "seed"],
    draw() {
      const sheet = sheets[get("index")];
      clean.read();
      corrupt(0, get("level"), clean.image, get("seed"), noisy);
      sheet.network.encode(clean.image, ofClean);
      sheet.network.encode(noisy, ofNoisy);
      sheet.network.decode(ofNoisy.mean, probabilities);
      title.textContent = sheet.name;
      plane.clear(sheet);
      plane.canvas.setAttribute("aria-label", `Manifold and codes of the ${sheet.name}`);
      plane.line(ofClean.mean, ofNoisy.mean, WHITE);
      plane.ellipse(ofClean, CLEAN);
      plane.ellipse(ofNoisy, NOISY);
      before.draw(clean.image);
      after.draw(noisy);
      map.draw(probabilities);
      binary.drawBinary(probabilities, clean.image);
      note.textContent = `${inWords(probabilities)}; ${wrongPixels(probabilities, clean.image)} wrong pixels`;
      bars.forEach(({ element }, i) => element.classList.toggle("dvae-chosen", i === get("index")));
      say(`${sheet.name}: ${note.textContent}.`);
      later(measure);
    },
  };
}

const FRAMES = 9; // pictures of a film strip

/** The traits that choose the first and the last square, and what paints both. */
const SQUARE_ENDS = {
  words: inWords,
  traits: ["first_row", "first_column", "last_row", "last_column"],
  paint(get, first, last) {
    paintSquare(get("first_row"), get("first_column"), first);
    paintSquare(get("last_row"), get("last_column"), last);
  },
};

/** `words` says what a picture shows; `paint(get, first, last)` makes the pictures at both ends, by `traits`; `dots`
 * tells whether the planes hold the codes of the squares. */
export function interpolate({ get, set, root, compared, say, view }, { words, traits, paint, dots } = SQUARE_ENDS) {
  const limit = get("limit");
  const [{ network: { size } }] = compared();
  const [first, last, blend] = [0, 1, 2].map(() => new Float32Array(size * size));
  const strip = (title) => {
    const picture = makePicture(title, FRAMES, size);
    const now = makePicture("", 1, size);
    followPointer(picture.canvas, (x) => set({ position: Math.round(100 * Math.min(Math.max(x, 0), 1)) }));
    picture.canvas.classList.add("dvae-strip");
    return { picture, now };
  };
  const row = (title, { picture, now }) => {
    picture.canvas.setAttribute("aria-label", `From the first picture to the second, ${title}`);
    now.canvas.setAttribute("aria-label", `Picture on the way, ${title}`);
    return [makeTitle(title), now.canvas, make("div", { class: "dvae-film" }, picture.canvas, make("i"))];
  };
  const between = (from, to, share, out) => {
    for (let i = 0; i < out.length; i++) out[i] = (1 - share) * from[i] + share * to[i];
  };
  const ways = compared().map((sheet) => ({
    sheet,
    plane: makePlane(`Way between the two codes of the ${sheet.name}`, limit, view),
    ends: [newPosterior(), newPosterior()],
    code: new Float32Array(2),
    probabilities: new Float32Array(size * size),
    ...strip("codes"),
  }));
  const pixels = strip("pixels");
  const rows = ways.flatMap((way) => row(`${way.sheet.name}, between codes`, way));
  rows.push(...row("between pixels", pixels));
  const planes = ways.map(({ sheet, plane }) =>
    make("section", { class: "dvae-panel" }, makeTitle(sheet.name), plane.element),
  );
  root.append(make("div", { class: "dvae-films" }, ...rows), make("div", { class: "dvae-pair" }, ...planes));
  const markers = root.querySelectorAll(".dvae-film > i");
  const player = makePlayer(() => get("position"), (position) => set({ position }));
  root.prepend(make("div", { class: "dvae-tools" }, player.element, swatch(CLEAN, "first"), swatch(NOISY, "last")));
  let drawn = ""; // the ends of the strips as they are
  const decodeAt = ({ sheet, ends, code, probabilities }, share) => {
    between(ends[0].mean, ends[1].mean, share, code);
    sheet.network.decode(code, probabilities);
  };
  const drawStrips = () => {
    const ends = String(traits.map(get));
    if (drawn === ends) return;
    drawn = ends;
    paint(get, first, last);
    for (const way of ways) {
      way.sheet.network.encode(first, way.ends[0]);
      way.sheet.network.encode(last, way.ends[1]);
    }
    for (let frame = 0; frame < FRAMES; frame++) {
      for (const way of ways) {
        decodeAt(way, frame / (FRAMES - 1));
        way.picture.draw(way.probabilities, frame);
      }
      between(first, last, frame / (FRAMES - 1), blend);
      pixels.picture.draw(blend, frame);
    }
  };
  return {
    traits: [...traits, "position"],
    dispose: player.stop,
    draw() {
      drawStrips();
      const share = get("position") / 100;
      for (const way of ways) {
        decodeAt(way, share);
        way.now.draw(way.probabilities);
        way.plane.clear(way.sheet, { dots });
        way.plane.line(way.ends[0].mean, way.ends[1].mean, WHITE);
        way.plane.point(way.ends[0].mean, CLEAN, 5);
        way.plane.point(way.ends[1].mean, NOISY, 5);
        way.plane.point(way.code, WHITE, 4);
      }
      between(first, last, share, blend);
      pixels.now.draw(blend);
      const middle = (0.5 + share * (FRAMES - 1)) / FRAMES;
      for (const marker of markers) marker.style.left = `${100 * middle}%`;
      const seen = ways.map(({ sheet, probabilities }) => `${sheet.name}: ${words(probabilities)}`);
      say(`${Math.round(100 * share)} % of the way. ${seen.join(". ")}. Pixels: a blend of the two pictures.`);
    },
  };
}

/** A button that moves a position from 0 to 100 in four seconds, in nine steps where less motion is wanted. */
function makePlayer(get, set) {
  let timer = null;
  const stop = () => {
    clearInterval(timer);
    timer = null;
    element.textContent = "Play";
  };
  const start = () => {
    const steady = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    const [step, pause] = steady ? [100 / (FRAMES - 1), 1000] : [1, 40];
    let position = get() >= 100 ? 0 : get();
    set(Math.round(position));
    element.textContent = "Pause";
    timer = setInterval(() => {
      if (get() !== Math.round(position)) return stop(); // the reader has moved it
      position = Math.min(position + step, 100);
      set(Math.round(position));
      return position === 100 && stop();
    }, pause);
  };
  const toggle = () => (timer ? stop() : start());
  const element = makeButton("Play", toggle);
  return { element, stop };
}

/** Only a kernel can train: this explorer stays hidden until one answers. */
function trainAgain({ get, root, model }) {
  root.parentElement.hidden = true;
  const value = make("output");
  const slider = make("input", { type: "range", min: 0.01, max: 0.5, step: 0.01, value: 0.25 });
  const show = () => (value.textContent = `p = ${Number(slider.value).toFixed(2)}`);
  slider.addEventListener("input", show);
  show();
  const train = makeButton("Train", () => model.send({ kind: "train", p: Number(slider.value) }));
  const stop = makeButton("Stop", () => model.send({ kind: "stop" }), { disabled: "" });
  const progress = make("progress", { max: get("steps"), value: 0, "aria-label": "training steps done" });
  const status = make("p", { class: "dvae-note", role: "status" }, `${get("steps")} steps`);
  model.on("msg:custom", (message) => {
    root.parentElement.hidden = false; // somebody is there
    if (message.kind !== "state") return;
    train.disabled = message.running;
    stop.disabled = !message.running;
    progress.value = message.done;
    status.textContent = message.text;
  });
  model.send({ kind: "hello" });
  const label = make("label", {}, "training noise ", slider, " ", value);
  root.append(make("div", { class: "dvae-tools" }, label, train, stop, progress), status);
  return { traits: [], draw() {} };
}

/** Start a worker with this text, a module's own, and a call of its `serve` at the end.
 *
 * `receive(worker, data)` is called with what it says, `fail(worker)` if it breaks down, `fail(null)` if it may not
 * start; null is then returned as well. */
export function startWorker(text, receive, fail) {
  const address = URL.createObjectURL(new Blob([text, "\nserve();"], { type: "text/javascript" }));
  try {
    const worker = new Worker(address, { type: "module" });
    worker.onmessage = ({ data }) => {
      URL.revokeObjectURL(address); // it is loaded
      receive(worker, data);
    };
    worker.onerror = (event) => {
      event.preventDefault();
      fail(worker);
    };
    return worker;
  } catch {
    URL.revokeObjectURL(address);
    fail(null);
    return null;
  }
}

/** The networks that a widget refers to, read once for all explorers of the page; layers alone where it holds these. */
export async function readSheets(model) {
  if (!model.get("networks")) return []; // an explorer that needs none
  const source = await model.widget_manager.get_model(model.get("networks").slice("IPY_MODEL_".length));
  const shared = (globalThis[Symbol.for("dvae_lib.sheets")] ??= new WeakMap());
  if (!shared.has(source) && !source.get("levels")) {
    shared.set(source, readLayers(source.get("weights"), source.get("shapes")));
  } else if (!shared.has(source)) {
    const levels = source.get("levels");
    const networks = readNetworks(source.get("weights"), source.get("shapes"), levels.length, source.get("activation"));
    shared.set(source, levels.map((level, i) => new Sheet(networks[i], level)));
  }
  return shared.get(source);
}
