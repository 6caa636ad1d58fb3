import {
  CLEAN, EXPLORERS, GROUND, NOISY, PIXELS, PLANE, WHITE, Network, Sheet, allSquares, corrupt, crossEntropy, inWords,
  make, makeButton, makeKey, makePicture, makePlane, newPosterior, normal, paintManifold, paintSquare, startWorker,
  swatch, uniforms, wrongPixels,
} from "./widgets.mjs";

// ---------------------------------------------------------------------------------- a network that learns in the page

export const HIDDEN = 64; // units of each hidden layer
export const CODE = 2;
export const BATCH = 32; // images a step
export const RATE = 0.004; // Adam's learning rate
export const [DECAY, SQUARE_DECAY, EPSILON] = [0.9, 0.999, 1e-8]; // Adam's, as PyTorch's
export const MOST_STEPS = 10000; // then a run ends by itself

// [rows, columns] of the layers, in the order of Network: encoder, heads of mean and log-variance, decoder
const SHAPES = [[HIDDEN, PIXELS], [HIDDEN, HIDDEN], [CODE, HIDDEN], [CODE, HIDDEN]];
SHAPES.push([HIDDEN, CODE], [HIDDEN, HIDDEN], [PIXELS, HIDDEN]);
export const PARAMETERS = SHAPES.reduce((sum, [rows, columns]) => sum + rows * (columns + 1), 0);

/** Look at one array of all parameters as layers: of each the weights, column by column, then the biases. */
export function asLayers(parameters) {
  let offset = 0;
  const take = (length) => parameters.subarray(offset, (offset += length));
  return SHAPES.map(([rows, columns]) => ({ rows, columns, weights: take(rows * columns), biases: take(rows) }));
}

/** Write the weights that a seed's generator draws: uniform in +-1/sqrt(columns), biases too, as PyTorch's default. */
export function initialise(layers, uniform) {
  for (const { columns, weights, biases } of layers) {
    const bound = 1 / Math.sqrt(columns);
    for (const values of [weights, biases]) {
      for (let i = 0; i < values.length; i++) values[i] = bound * (2 * uniform() - 1);
    }
  }
}

/** For each of BATCH rows of `input`, write weights * input + biases into a row of `output`. What is 0 costs nothing:
 * most pixels are, and half of what a ReLU lets through. */
function forwardLayer({ rows, columns, weights, biases }, input, output, relu) {
  for (let first = 0, from = 0; first < output.length; first += rows, from += columns) {
    output.set(biases, first);
    for (let column = 0; column < columns; column++) {
      const value = input[from + column];
      if (value === 0) continue;
      for (let row = 0, i = column * rows; row < rows; row++, i++) output[first + row] += weights[i] * value;
    }
  }
  if (relu) for (let i = 0; i < output.length; i++) if (output[i] < 0) output[i] = 0;
}

/** Add the layer's part of the gradient: to `slope` that by its weights and biases, to `inputSlope`, where one is
 * wanted, that by its input; `outputSlope` is that by its output. After a ReLU, an input of 0 has none. */
function backwardLayer({ rows, columns, weights }, slope, input, outputSlope, inputSlope, relu) {
  for (let first = 0, from = 0; first < outputSlope.length; first += rows, from += columns) {
    for (let row = 0; row < rows; row++) slope.biases[row] += outputSlope[first + row];
    for (let column = 0; column < columns; column++) {
      const value = input[from + column];
      if (value === 0 && (relu || !inputSlope)) continue;
      let sum = 0;
      for (let row = 0, i = column * rows; row < rows; row++, i++) {
        const change = outputSlope[first + row];
        slope.weights[i] += change * value;
        sum += change * weights[i];
      }
      if (inputSlope) inputSlope[from + column] += sum;
    }
  }
}

/** A DVAE, its batch and its optimiser. All arrays are made once: a step allocates nothing. The same seed, noise and
 * number of steps give the same weights to the last bit, in the same browser. */
export class Learner {
  constructor(seed) {
    const batch = (columns) => new Float32Array(BATCH * columns);
    this.uniform = uniforms(seed); // the only source of all that is drawn, in a fixed order
    this.squares = allSquares();
    [this.parameters, this.gradient, this.first, this.second] = [0, 1, 2, 3].map(() => new Float32Array(PARAMETERS));
    this.layers = asLayers(this.parameters);
    this.slopes = asLayers(this.gradient);
    this.network = new Network(this.layers); // the same weights
    this.steps = 0;
    this.reconstruction = this.divergence = 0; // of the last batch, in nats per image
    [this.images, this.inputs, this.logits, this.logitSlopes] = [0, 1, 2, 3].map(() => batch(PIXELS));
    [this.eps, this.means, this.logVariances, this.codes] = [0, 1, 2, 3].map(() => batch(CODE));
    [this.meanSlopes, this.logVarianceSlopes, this.codeSlopes] = [0, 1, 2].map(() => batch(CODE));
    this.hidden = [0, 1, 2, 3].map(() => batch(HIDDEN)); // two of the encoder, two of the decoder
    this.hiddenSlopes = [0, 1, 2, 3].map(() => batch(HIDDEN));
    initialise(this.layers, this.uniform);
  }

  /** Draw a batch: squares, flips with probability `p` in what the encoder gets, and the sampler's eps. As many numbers
   * are drawn whatever `p` is, so that a higher one flips the same pixels and more. */
  draw(p) {
    const { uniform, squares, images, inputs, eps } = this;
    for (let k = 0; k < BATCH; k++) images.set(squares[Math.floor(squares.length * uniform())], k * PIXELS);
    for (let i = 0; i < images.length; i++) inputs[i] = uniform() < p ? 1 - images[i] : images[i];
    for (let j = 0; j < eps.length; j++) eps[j] = normal(uniform(), uniform());
  }

  /** From `inputs`, `images` and `eps` to J, the reconstruction plus the divergence; both are kept, per image. */
  forward() {
    const { layers, inputs, images, eps, hidden, means, logVariances, codes, logits } = this;
    forwardLayer(layers[0], inputs, hidden[0], true);
    forwardLayer(layers[1], hidden[0], hidden[1], true);
    forwardLayer(layers[2], hidden[1], means, false);
    forwardLayer(layers[3], hidden[1], logVariances, false);
    let divergence = 0;
    for (let j = 0; j < codes.length; j++) {
      const [mean, logVariance] = [means[j], logVariances[j]];
      codes[j] = mean + Math.exp(logVariance / 2) * eps[j];
      divergence += (mean * mean + Math.exp(logVariance) - 1 - logVariance) / 2;
    }
    forwardLayer(layers[4], codes, hidden[2], true);
    forwardLayer(layers[5], hidden[2], hidden[3], true);
    forwardLayer(layers[6], hidden[3], logits, false);
    let reconstruction = 0;
    for (let k = 0, i = 0; k < BATCH; k++) {
      let product = 1; // of the 1 + exp(-|logit|) of an image, at most 2^576: one logarithm for all
      for (const end = i + PIXELS; i < end; i++) {
        const logit = logits[i];
        product *= 1 + Math.exp(-Math.abs(logit));
        reconstruction += (logit > 0 ? logit : 0) - logit * images[i];
      }
      reconstruction += Math.log(product);
    }
    this.reconstruction = reconstruction / BATCH;
    this.divergence = divergence / BATCH;
  }

  /** Write the gradient of J, summed over the batch, by every parameter: the chain rule, from the end to the start. */
  backward() {
    const { layers, slopes, inputs, images, eps, hidden, hiddenSlopes, means, logVariances, codes, logits } = this;
    const { logitSlopes, codeSlopes, meanSlopes, logVarianceSlopes } = this;
    for (const values of [this.gradient, codeSlopes, ...hiddenSlopes]) values.fill(0);
    for (let i = 0; i < logits.length; i++) logitSlopes[i] = 1 / (1 + Math.exp(-logits[i])) - images[i];
    backwardLayer(layers[6], slopes[6], hidden[3], logitSlopes, hiddenSlopes[3], true);
    backwardLayer(layers[5], slopes[5], hidden[2], hiddenSlopes[3], hiddenSlopes[2], true);
    backwardLayer(layers[4], slopes[4], codes, hiddenSlopes[2], codeSlopes, false);
    for (let j = 0; j < codes.length; j++) {
      const deviation = Math.exp(logVariances[j] / 2);
      meanSlopes[j] = codeSlopes[j] + means[j];
      logVarianceSlopes[j] = (codeSlopes[j] * eps[j] * deviation + deviation * deviation - 1) / 2;
    }
    backwardLayer(layers[3], slopes[3], hidden[1], logVarianceSlopes, hiddenSlopes[1], true);
    backwardLayer(layers[2], slopes[2], hidden[1], meanSlopes, hiddenSlopes[1], true);
    backwardLayer(layers[1], slopes[1], hidden[0], hiddenSlopes[1], hiddenSlopes[0], true);
    backwardLayer(layers[0], slopes[0], inputs, hiddenSlopes[0], null, false);
  }

  /** Move every parameter against the gradient, as Adam does. */
  adam() {
    const { parameters, gradient, first, second } = this;
    this.steps++;
    const length = RATE / (1 - DECAY ** this.steps);
    const scale = 1 / (1 - SQUARE_DECAY ** this.steps);
    for (let i = 0; i < PARAMETERS; i++) {
      const slope = gradient[i];
      first[i] = DECAY * first[i] + (1 - DECAY) * slope;
      second[i] = SQUARE_DECAY * second[i] + (1 - SQUARE_DECAY) * slope * slope;
      parameters[i] -= (length * first[i]) / (Math.sqrt(scale * second[i]) + EPSILON);
    }
  }

  /** One step: a batch with flips of probability `p`, the objective, its gradient, Adam. */
  step(p) {
    this.draw(p);
    this.forward();
    this.backward();
    this.adam();
  }
}

// ---------------------------------------------------------------------------------------------------------- the worker

const CODED = allSquares();

/** What is shown of a network: its manifold as the pixels of a canvas, the codes of the 256 squares, and how many of
 * them stand, that is, come back from their codes with an overlap of at least `least`. */
export function survey(network, limit, least = 0.9) {
  const ground = new Uint32Array(PLANE * PLANE);
  const codes = new Float32Array(CODE * CODED.length);
  const [posterior, picture] = [newPosterior(), new Float32Array(PIXELS)];
  let standing = 0;
  paintManifold(network, limit, ground);
  CODED.forEach((square, number) => {
    network.encode(square, posterior);
    codes.set(posterior.mean, CODE * number);
    network.decode(posterior.mean, picture);
    let [shared, covered] = [0, 0];
    for (let i = 0; i < PIXELS; i++) {
      const [found, there] = [picture[i] >= 0.5, square[i] === 1];
      if (found && there) shared++;
      if (found || there) covered++;
    }
    if (shared >= least * covered) standing++;
  });
  return { ground, codes, standing };
}

export const SPEEDS = ["slow", "steady", "fast"];
const PAUSES = [250, 25, 0]; // milliseconds from one step to the next, at each speed
const SLICE = 40; // milliseconds of steps, when fast, before the worker looks at its messages

/** Be the worker: do what the page asks for in messages, and tell what has come of it.
 *
 * A message holds any of: `seed` (a new run, the first message), `p`, `speed`, `limit` of the code plane, `every`, the
 * least time between two pictures in milliseconds, `running`, `step` (one step) and `drawn` (the last picture is, so
 * that the next may come). An answer holds the number of steps, whether the worker is running, the parameters, a
 * survey, and for each step since the last answer a row of reconstruction, divergence and noise. */
export function serve(scope = globalThis) {
  const asked = { p: 0, speed: 0, limit: 4, every: 100, most: MOST_STEPS, running: false };
  const rows = [];
  let [one, timer, drawn, next] = [null, null, true, 0];
  const step = () => {
    if (one.steps >= asked.most) return;
    one.step(asked.p);
    rows.push(one.reconstruction, one.divergence, asked.p);
  };
  const tell = () => {
    const start = performance.now();
    const seen = survey(one.network, asked.limit);
    const parameters = one.parameters.slice();
    const curves = Float32Array.from(rows.splice(0));
    const message = { steps: one.steps, running: asked.running, parameters, rows: curves, ...seen };
    scope.postMessage(message, [parameters, curves, seen.ground, seen.codes].map(({ buffer }) => buffer));
    drawn = false;
    const cost = performance.now() - start;
    next = start + cost + Math.max(asked.every, 4 * cost); // most of the time is for the steps
  };
  const work = () => {
    timer = null;
    if (!asked.running) return;
    const end = performance.now() + SLICE;
    do step();
    while (asked.speed === SPEEDS.length - 1 && one.steps < asked.most && performance.now() < end);
    if (one.steps >= asked.most) asked.running = false;
    if (!asked.running || (drawn && performance.now() >= next)) tell();
    timer = setTimeout(work, PAUSES[asked.speed]);
  };
  scope.onmessage = ({ data }) => {
    const wasRunning = asked.running;
    Object.assign(asked, data);
    if ("seed" in data) one = new Learner(data.seed);
    if (data.drawn) drawn = true;
    if (data.step) step();
    if (data.step || (wasRunning && !asked.running)) tell();
    if ("speed" in data && timer) timer = clearTimeout(timer);
    if (asked.running && !timer) timer = setTimeout(work, 0);
  };
}

// ---------------------------------------------------------------------------------------------------- the explorer

const [COST, PAID] = ["#e69f00", "#56b4e9"]; // orange: reconstruction; sky blue: divergence
const FLOOR = 0.5; // nats, the lower end of the curves' logarithmic axis
const CEILING = 600;
const AXES = [50, 100, 200, 500, 1000, 2000, 5000, MOST_STEPS]; // steps that the curves have room for
const RECENT = 50; // steps that the numbers are means of
const [LOOK, STEADY_LOOK] = [100, 3000]; // milliseconds between two pictures; the latter where less motion is wanted
const HUSH = 5000; // milliseconds between two words while it learns

const grouped = (number) => String(number).replace(/\B(?=(\d{3})+$)/g, ",");

/** What a code plane asks a sheet for, of a network that changes. */
function makeGround() {
  const [manifold, dots] = [0, 1].map(() => make("canvas", { width: PLANE, height: PLANE }));
  const [below, above] = [manifold, dots].map((canvas) => canvas.getContext("2d"));
  let [codes, drawn] = [[], 0];
  return {
    set(found) {
      const memory = new Uint8ClampedArray(found.ground.buffer);
      below.putImageData(new ImageData(memory, PLANE), 0, 0);
      codes = CODED.map((_, number) => found.codes.subarray(CODE * number, CODE * (number + 1)));
      drawn = 0;
    },
    layer(what, limit, unit) {
      if (what === "dots" && drawn !== unit) {
        above.clearRect(0, 0, PLANE, PLANE);
        Sheet.prototype.dots.call({ codes }, above, limit, unit);
        drawn = unit;
      }
      return what === "dots" ? dots : manifold;
    },
  };
}

/** The curves: reconstruction and divergence of each step, with the places where the noise was changed. */
function makeCurves(redraw) {
  const canvas = make("canvas", { class: "dvae-curves", role: "img", width: 600, height: 300 });
  const context = canvas.getContext("2d");
  const resized = () => {
    const width = Math.round(Math.max(canvas.clientWidth, 200) * Math.min(window.devicePixelRatio || 1, 2));
    if (width !== canvas.width) [canvas.width, canvas.height] = [width, Math.round(width / 1.9), redraw()];
  };
  new ResizeObserver(resized).observe(canvas);
  return {
    canvas,
    draw(rows, steps) {
      const unit = canvas.width / Math.max(canvas.clientWidth, 200); // pixels of the canvas in a point of the page
      const [left, right, top, bottom] = [50, 12, 10, 36].map((points) => points * unit);
      const [width, height] = [canvas.width - left - right, canvas.height - top - bottom];
      const most = AXES.find((end) => end >= steps);
      const across = (step) => left + (width * step) / most;
      const up = (nats) => top + (height * Math.log(CEILING / Math.max(nats, FLOOR))) / Math.log(CEILING / FLOOR);
      const line = (x0, y0, x1, y1) => {
        context.beginPath();
        context.moveTo(x0, y0);
        context.lineTo(x1, y1);
        context.stroke();
      };
      const write = (text, x, y, align, colour = "#c3cad1") => {
        Object.assign(context, { fillStyle: colour, textAlign: align, textBaseline: "middle" });
        context.fillText(text, x, y);
      };
      const level = (nats, text, above) => {
        context.setLineDash([4 * unit, 4 * unit]);
        Object.assign(context, { strokeStyle: "#8a939c", lineWidth: unit });
        line(left, up(nats), left + width, up(nats));
        context.setLineDash([]);
        write(text, left + width, up(nats) + (above ? -8 : 9) * unit, "right");
      };
      context.font = `${11.5 * unit}px system-ui, sans-serif`;
      context.fillStyle = GROUND;
      context.fillRect(0, 0, canvas.width, canvas.height);
      Object.assign(context, { strokeStyle: "#2e363e", lineWidth: unit });
      for (const nats of [1, 10, 100]) {
        line(left, up(nats), left + width, up(nats));
        write(nats, left - 6 * unit, up(nats), "right");
      }
      for (const share of [0, 0.5, 1]) {
        const align = share === 1 ? "right" : "center";
        write(grouped(share * most), across(share * most), top + height + 10 * unit, align);
      }
      write("steps", left + width / 2, top + height + 26 * unit, "center");
      context.save();
      context.translate(11 * unit, top + height / 2);
      context.rotate(-Math.PI / 2);
      write("nats per image", 0, 0, "center");
      context.restore();
      level(PIXELS * Math.LN2, "576 ln 2 = 399: a coin for each pixel", true);
      level(Math.log(CODED.length), "ln 256 = 5.5", false);
      let label = -Infinity; // the right end of the last one
      for (let step = 0; step < steps; step++) {
        const p = rows[3 * step + 2];
        if (step > 0 && p === rows[3 * step - 1]) continue;
        const [x, text] = [across(step), `p = ${p.toFixed(2)}`];
        Object.assign(context, { strokeStyle: WHITE, lineWidth: unit });
        if (step > 0) line(x, top, x, top + height);
        if (x < label || x + 60 * unit > left + width) continue;
        write(text, x + 5 * unit, top + height - 10 * unit, "left", WHITE);
        label = x + 60 * unit;
      }
      const pool = Math.max(1, Math.ceil((2 * steps * unit) / width)); // steps behind a point of the curve
      for (const [part, colour] of [COST, PAID].entries()) {
        context.beginPath();
        for (let step = 0; step < steps; step += pool) {
          const end = Math.min(step + pool, steps);
          let sum = 0;
          for (let one = step; one < end; one++) sum += rows[3 * one + part];
          context.lineTo(across((step + end + 1) / 2), up(sum / (end - step)));
        }
        Object.assign(context, { strokeStyle: colour, lineWidth: 2 * unit, lineJoin: "round" }).stroke();
        if (steps === 1) context.fillStyle = colour;
        if (steps === 1) context.fillRect(across(1) - 2 * unit, up(rows[part]) - 2 * unit, 4 * unit, 4 * unit);
      }
    },
  };
}

/** A network learns, in a worker, while the page draws what it has learnt. */
function trainInPage({ get, root, model, say, view }) {
  const limit = get("limit");
  const parameters = new Float32Array(PARAMETERS); // as they were last told
  const network = new Network(asLayers(parameters));
  const rows = new Float32Array(3 * MOST_STEPS);
  const ground = makeGround();
  const run = { seed: null, steps: 0, running: false, failed: false, surveyed: null, worker: null, sent: {} };
  run.spoken = 0; // when words were last said
  const steady = window.matchMedia("(prefers-reduced-motion: reduce)");
  let seen = true; // no more than a screen away

  // what the worker is told: only what has changed
  const tell = (wanted) => {
    if (!run.worker) return;
    const news = Object.entries(wanted).filter(([name, value]) => run.sent[name] !== value);
    Object.assign(run.sent, wanted);
    if (news.length) run.worker.postMessage(Object.fromEntries(news));
  };
  const settings = () => ({
    p: get("p"),
    speed: get("speed"),
    every: steady.matches ? STEADY_LOOK : LOOK,
    running: run.running && seen,
  });
  const receive = (worker, data) => {
    if (worker !== run.worker) return;
    rows.set(data.rows, 3 * run.steps);
    parameters.set(data.parameters);
    Object.assign(run, { steps: data.steps, surveyed: data });
    if (run.steps >= MOST_STEPS) run.running = false;
    run.sent.running = data.running;
    ground.set(data);
    worker.postMessage({ drawn: true });
    view.redraw();
  };
  const fail = () => {
    stop();
    run.failed = true;
    view.redraw();
  };
  const stop = () => {
    run.worker?.terminate();
    Object.assign(run, { worker: null, running: false, sent: {} });
  };
  const reset = () => {
    stop();
    Object.assign(run, { seed: get("seed"), steps: 0, surveyed: null, spoken: 0 });
    initialise(network.layers, uniforms(run.seed));
  };
  const ready = () => {
    if (run.worker) return;
    run.worker = startWorker(model.get("_esm"), receive, fail);
    tell({ seed: run.seed, limit, ...settings() });
  };
  const toggle = () => {
    run.running = !run.running;
    if (run.running) ready();
    tell(settings());
    run.spoken = 0;
    view.redraw();
  };
  const single = () => {
    ready();
    run.spoken = 0;
    run.worker?.postMessage({ step: true });
  };
  const again = () => {
    reset();
    view.redraw();
  };

  const start = makeButton("Start", toggle);
  const step = makeButton("Step", single);
  const back = makeButton("Reset", again);
  const count = make("strong", { class: "dvae-count" });
  const tools = make("div", { class: "dvae-tools" }, start, step, back, count);
  const plane = makePlane("Code plane", limit, view);
  const curves = makeCurves(view.redraw);
  const titles = ["square", "noisy input", "probabilities", "at 1/2"];
  const [before, after, map, binary] = titles.map((title) => makePicture(title));
  const pictures = make("div", { class: "dvae-four" }, ...[before, after, map, binary].map(({ element }) => element));
  const note = make("p", { class: "dvae-note" });
  const [cost, paid] = [swatch(COST, ""), swatch(PAID, "")];
  const [costText, paidText] = [cost, paid].map((element) => element.appendChild(make("span")));
  const legend = make("figcaption", { class: "dvae-legend" }, cost, paid);
  const ellipses = make("p", { class: "dvae-legend" }, swatch(CLEAN, "posterior, clean square"));
  ellipses.append(swatch(NOISY, "posterior, noisy input"));
  const chart = make("figure", { class: "dvae-chart" }, curves.canvas, legend);
  root.append(
    tools,
    make(
      "div",
      { class: "dvae-pair" },
      make("section", { class: "dvae-panel" }, plane.element, ellipses, makeKey("")),
      make("section", { class: "dvae-panel" }, chart, pictures, note),
    ),
  );

  root.classList.add("dvae-learner");
  root.learner = { parameters, rows, run }; // for tests and the curious

  // a run waits while it is more than a screen away
  const watch = new IntersectionObserver(([entry]) => {
    seen = entry.isIntersecting;
    tell(settings());
  }, { rootMargin: "100%" });
  watch.observe(root);

  const [image, noisy, probabilities, logits] = [0, 1, 2, 3].map(() => new Float32Array(PIXELS));
  const [ofClean, ofNoisy] = [newPosterior(), newPosterior()];
  const recent = (part) => {
    const first = Math.max(0, run.steps - RECENT);
    let sum = 0;
    for (let one = first; one < run.steps; one++) sum += rows[3 * one + part];
    return sum / (run.steps - first);
  };
  const inShort = () => {
    if (run.failed) return "This page may not start a worker, and without one nothing can be trained here.";
    if (run.steps === 0 && run.running) return "The first steps are on their way.";
    if (run.steps === 0) return "Untrained: every pixel is grey. Press Start.";
    const end = run.steps >= MOST_STEPS ? " The run ends here; Reset begins anew." : "";
    return `${run.surveyed.standing} of ${CODED.length} squares stand.${end}`;
  };
  return {
    traits: ["p", "speed", "seed", "row", "column"],
    dispose() {
      stop();
      watch.disconnect();
    },
    draw() {
      if (run.seed !== get("seed")) reset();
      tell(settings());
      if (!run.surveyed && view.complete) ground.set((run.surveyed = survey(network, limit)));
      start.textContent = run.running ? "Pause" : "Start";
      start.disabled = run.failed || run.steps >= MOST_STEPS;
      step.disabled = start.disabled || run.running;
      back.disabled = run.steps === 0 && !run.running;
      paintSquare(get("row"), get("column"), image);
      corrupt(0, get("p"), image, run.seed, noisy);
      network.encode(image, ofClean);
      network.encode(noisy, ofNoisy);
      network.decode(ofNoisy.mean, probabilities, logits);
      plane.clear(ground);
      plane.line(ofClean.mean, ofNoisy.mean, WHITE);
      plane.ellipse(ofClean, CLEAN);
      plane.ellipse(ofNoisy, NOISY);
      before.draw(image);
      after.draw(noisy);
      map.draw(probabilities);
      binary.drawBinary(probabilities, image);
      curves.draw(rows, run.steps);
      const means = [0, 1].map((part) => (run.steps ? recent(part).toFixed(1) : "\u2013"));
      costText.textContent = `reconstruction ${means[0]} nats`;
      paidText.textContent = `divergence ${means[1]} nats`;
      const wrong = `${inWords(probabilities)}, ${wrongPixels(probabilities, image)} wrong pixels`;
      note.textContent = `${wrong}; cross-entropy ${crossEntropy(logits, image).toFixed(1)} nats`;
      count.textContent = `Step ${grouped(run.steps)}. ${inShort()}`;
      plane.canvas.setAttribute("aria-label", `Manifold, and codes of the 256 squares, after ${run.steps} steps`);
      const now = `${costText.textContent}, ${paidText.textContent}`;
      curves.canvas.setAttribute("aria-label", `Curves of ${run.steps} steps: ${now}`);
      if (run.running && performance.now() - run.spoken < HUSH) return;
      run.spoken = performance.now();
      say(`${count.textContent} ${now}. The chosen square: ${wrong}.`);
    },
  };
}

EXPLORERS.train_in_page = trainInPage;
