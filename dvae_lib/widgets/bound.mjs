// The explorer "The bound, live": the log-likelihood of a picture and the bounds on it, in nats, and the posteriors
// that lie between them. As in widgets.mjs, what is exported computes and touches no page.
import {
  CLEAN,
  EXPLORERS,
  GROUND,
  MISSING,
  NOISY,
  PIXELS,
  PLANE,
  WHITE,
  cleanPicture,
  drawingButtons,
  dropDrawing,
  corrupt,
  decimal,
  freshNoise,
  make,
  makeEditable,
  makePicture,
  makeTitle,
  pair,
  place,
  startWorker,
  swatch,
  toHex,
} from "./widgets.mjs";

export const DRAWS = 64; // corruptions of the picture, which stand for all of them
export const COUNTS = [1, 4, 16, 64]; // K, each a divisor of DRAWS
export const FIRST_DRAW = 30000; // of their seeds
const NODES = { likelihood: null, entropy: 6, clean: 10 }; // along each axis; null is the rule of twelve nodes
const FINE = { entropy: 14, likelihood: 4e-3, clean: 5e-4 }; // nodes along each axis; changes in nats: see `refine`
const FRAME = { radius: 5.5, step: 0.7, most: 40000 }; // of refined grids, in standard deviations, and their nodes
const TURN = Math.PI * (3 - Math.sqrt(5)); // between the rules of two Gaussians, that their errors average out
const GRID = { limit: 6, nodes: 241, every: 2 }; // of the table: spacing 0.05; every second code keeps its hidden layer
const LN_TWO_PI = Math.log(2 * Math.PI);

// ------------------------------------------------------------------------------------------------- double precision

/** A network in double precision, as log-likelihoods of thousands of nats are subtracted from one another here. */
export class Precise {
  constructor(layers, activation = "relu") {
    this.activation = activation;
    this.layers = layers.map(({ rows, columns, weights, biases }) => ({
      rows,
      columns,
      weights: Float64Array.from(weights),
      biases: Float64Array.from(biases),
    }));
    const [width] = layers.map(({ rows }) => rows);
    Object.assign(this, { width, first: new Float64Array(width), second: new Float64Array(width) });
    this.logits = new Float64Array(PIXELS);
  }

  /** Mean and log-variance of q(z|image). */
  encode(image) {
    const posterior = { mean: new Float64Array(2), logVariance: new Float64Array(2) };
    multiply(this.layers[0], image, this.first);
    this.activate(this.first);
    multiply(this.layers[1], this.first, this.second);
    this.activate(this.second);
    multiply(this.layers[2], this.second, posterior.mean);
    multiply(this.layers[3], this.second, posterior.logVariance);
    return posterior;
  }

  activate(values) {
    if (this.activation === "tanh") for (let i = 0; i < values.length; i++) values[i] = Math.tanh(values[i]);
    else for (let i = 0; i < values.length; i++) if (values[i] < 0) values[i] = 0;
  }

  /** The decoder's last hidden layer at the code (z1, z2); it holds until the next call. */
  hidden(z1, z2) {
    const { weights, biases } = this.layers[4];
    for (let i = 0; i < this.width; i++) {
      this.first[i] = biases[i] + weights[i] * z1 + weights[this.width + i] * z2;
    }
    this.activate(this.first);
    multiply(this.layers[5], this.first, this.second);
    this.activate(this.second);
    return this.second;
  }

  /** The sum of ln(1 + e^logit) over the pixels. */
  softplus(hidden) {
    multiply(this.layers[6], hidden, this.logits);
    let [sum, product] = [0, 1]; // of factors of at most 2, hence at most 2^576
    for (let i = 0; i < PIXELS; i++) {
      const logit = this.logits[i];
      if (logit > 0) sum += logit;
      product *= 1 + Math.exp(logit > 0 ? -logit : logit);
    }
    return sum + Math.log(product);
  }

  /** The sum of image * logit over the pixels is affine in the hidden layer: its slopes and its constant. */
  project(image) {
    const { rows, weights, biases } = this.layers[6];
    const slopes = new Float64Array(this.width);
    let constant = 0;
    for (let i = 0; i < rows; i++) {
      if (!image[i]) continue;
      constant += image[i] * biases[i];
      for (let j = 0; j < this.width; j++) slopes[j] += image[i] * weights[j * rows + i];
    }
    return { slopes, constant };
  }

  /** ln p(image|code), given what `project` says of the image; the second sum may be known from a table. */
  logLikelihood({ slopes, constant }, z1, z2, softplus = null) {
    const hidden = this.hidden(z1, z2);
    return constant + dot(slopes, hidden, 0) - (softplus ?? this.softplus(hidden));
  }
}

let chosen = new Int32Array(PIXELS);

/** Write weights * input + biases into `output`, four columns at a time. Columns whose input is 0 are left out. */
function multiply({ rows, weights, biases }, input, output) {
  let count = 0;
  if (chosen.length < input.length) chosen = new Int32Array(input.length);
  for (let i = 0; i < input.length; i++) if (input[i] !== 0) chosen[count++] = i;
  output.set(biases);
  let k = 0;
  for (; k + 3 < count; k += 4) {
    const [a, b, c, d] = [chosen[k], chosen[k + 1], chosen[k + 2], chosen[k + 3]];
    const [va, vb, vc, vd] = [input[a], input[b], input[c], input[d]];
    const [ia, ib, ic, id] = [a * rows, b * rows, c * rows, d * rows];
    for (let row = 0; row < rows; row++) {
      output[row] += weights[ia + row] * va + weights[ib + row] * vb + weights[ic + row] * vc + weights[id + row] * vd;
    }
  }
  for (; k < count; k++) {
    const [value, first] = [input[chosen[k]], chosen[k] * rows];
    for (let row = 0; row < rows; row++) output[row] += weights[first + row] * value;
  }
}

/** The sum of the products of `values` and of as many entries of `others`, from `first` on. */
function dot(values, others, first) {
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += values[i] * others[first + i];
  return sum;
}

/** ln(e^a + e^b + ...), of a list that is not empty. */
export function logSumExp(values) {
  let [top, sum] = [-Infinity, 0];
  for (const value of values) top = Math.max(top, value);
  for (const value of values) sum += Math.exp(value - top);
  return top + Math.log(sum);
}

// ------------------------------------------------------------------------------------------------------- quadrature

/** The Gauss-Hermite rule for means under N(0, 1): the roots of the Hermite polynomial and their weights. */
export function gaussHermite(nodes) {
  const hermite = (x, degree) => {
    let [before, now] = [0, 1];
    for (let n = 0; n < degree; n++) [before, now] = [now, x * now - n * before];
    return now;
  };
  const [points, weights] = [[], []];
  const [step, end] = [0.01, 2 * Math.sqrt(nodes)];
  for (let x = -end - step / 3; x < end; x += step) {
    let [low, high] = [x, x + step];
    if (hermite(low, nodes) > 0 === hermite(high, nodes) > 0) continue;
    for (let i = 0; i < 60; i++) {
      const middle = (low + high) / 2;
      if (hermite(middle, nodes) > 0 === hermite(low, nodes) > 0) low = middle;
      else high = middle;
    }
    points.push((low + high) / 2);
  }
  let factorial = 1;
  for (let n = 2; n < nodes; n++) factorial *= n;
  for (const x of points) weights.push(factorial / (nodes * hermite(x, nodes - 1) ** 2)); // nodes! / nodes^2 = ...
  return { points, weights };
}

/** Stroud's rule of twelve nodes and degree 7 for means under the standard normal distribution of the plane. */
function ringRule() {
  const root = Math.sqrt(5);
  const diagonal = (sign) => {
    const [away, weight] = [Math.sqrt((9 + 3 * sign * root) / 4), (5 - 2 * sign * root) / 45];
    return [[1, 1], [1, -1], [-1, 1], [-1, -1]].map(([x, y]) => [x * away, y * away, weight]);
  };
  const far = Math.sqrt(6);
  const onAxes = [[far, 0], [-far, 0], [0, far], [0, -far]].map(([x, y]) => [x, y, 1 / 36]);
  return [...onAxes, ...diagonal(-1), ...diagonal(1)];
}

/** A rule for means under the standard normal distribution of the plane, with nodes^2 nodes or with twelve: the nodes'
 * two coordinates and their weights. */
export function planeRule(nodes) {
  if (nodes === null) return columns(ringRule());
  const { points, weights } = gaussHermite(nodes);
  return columns(points.flatMap((x, i) => points.map((y, j) => [x, y, weights[i] * weights[j]])));
}

/** The columns of a list of rows. */
const columns = (rows) => rows[0].map((_, k) => Float64Array.from(rows, (values) => values[k]));

const rules = new Map();

/** Call `visit(z1, z2, weight)` at the nodes of a Gaussian, the rule turned by `turn`. */
function eachNode({ mean, logVariance }, nodes, turn, visit) {
  if (!rules.has(nodes)) rules.set(nodes, planeRule(nodes));
  const [x, y, weights] = rules.get(nodes);
  const [cos, sin] = [Math.cos(turn), Math.sin(turn)];
  const [sd1, sd2] = [Math.exp(logVariance[0] / 2), Math.exp(logVariance[1] / 2)];
  for (let i = 0; i < weights.length; i++) {
    visit(mean[0] + sd1 * (cos * x[i] - sin * y[i]), mean[1] + sd2 * (sin * x[i] + cos * y[i]), weights[i]);
  }
}

/** The mean of `value(z1, z2)` under a Gaussian, over a grid of codes that is made finer. Yields now and then.
 *
 * The spacing is halved along the axis along which leaving out every second code changes the mean more, until neither
 * change reaches `tolerance`, or 5 millionths of the mean where that is more. */
export function* refinedMean({ mean, logVariance }, tolerance, [right, up], value) {
  const sd = [...logVariance].map((entry) => Math.exp(entry / 2));
  const steps = [FRAME.step, FRAME.step];
  const nodes = [];
  function* add(axis = null) {
    const [width, height] = steps.map((step) => Math.ceil(FRAME.radius / step) + 1);
    for (let i = -width; i <= width; i++) {
      if (axis === 0 && i % 2 === 0) continue;
      for (let j = -height; j <= height; j++) {
        if (axis === 1 && j % 2 === 0) continue;
        const [x, y] = [FRAME.step * right + i * steps[0], FRAME.step * up + j * steps[1]];
        if (Math.hypot(x, y) > FRAME.radius) continue;
        const weight = Math.exp(-(x * x + y * y) / 2);
        nodes.push({ at: [i, j], weight, value: value(mean[0] + sd[0] * x, mean[1] + sd[1] * y) });
      }
      yield;
    }
  }
  yield* add();
  for (;;) {
    const found = weightedMean(nodes);
    const without = [0, 1].map((axis) => weightedMean(nodes.filter(({ at }) => at[axis] % 2 === 0)));
    const changes = without.map((other) => Math.abs(other - found));
    if (Math.max(...changes) < Math.max(tolerance, 5e-6 * Math.abs(found)) || nodes.length > FRAME.most) return found;
    const axis = changes[0] > changes[1] ? 0 : 1;
    steps[axis] /= 2;
    for (const { at } of nodes) at[axis] *= 2;
    yield* add(axis);
  }
}

function weightedMean(nodes) {
  let [sum, total] = [0, 0];
  for (const { weight, value } of nodes) [sum, total] = [sum + weight * value, total + weight];
  return sum / total;
}

/** E_q ln p(image|z), by quadrature. */
export function expectedLogLikelihood(network, projected, posterior, nodes, turn = 0) {
  let sum = 0;
  eachNode(posterior, nodes, turn, (z1, z2, weight) => {
    sum += weight * network.logLikelihood(projected, z1, z2);
  });
  return sum;
}

/** E_q ln p(z), the prior's part. */
export const expectedLogPrior = ({ mean, logVariance }) =>
  -LN_TWO_PI - (mean[0] ** 2 + mean[1] ** 2 + Math.exp(logVariance[0]) + Math.exp(logVariance[1])) / 2;

/** The entropy of a Gaussian, in nats. */
export const gaussianEntropy = ({ logVariance }) => 1 + LN_TWO_PI + (logVariance[0] + logVariance[1]) / 2;

/** For each K of COUNTS, the mean entropy of mixtures of K of the Gaussians: the first K, the next K, and so on. */
export function mixtureEntropies(posteriors, nodes = NODES.entropy) {
  const count = posteriors.length;
  const entropies = COUNTS.map(() => 0);
  const flat = posteriors.map(({ mean, logVariance }) => [
    mean[0],
    mean[1],
    Math.exp(-logVariance[0]) / 2,
    Math.exp(-logVariance[1]) / 2,
    Math.exp(-(logVariance[0] + logVariance[1]) / 2),
  ]);
  const [m1, m2, s1, s2, height] = columns(flat);
  const densities = new Float64Array(count);
  posteriors.forEach((posterior, own) => {
    eachNode(posterior, nodes, own * TURN, (z1, z2, weight) => {
      for (let k = 0; k < count; k++) {
        const far = s1[k] * (z1 - m1[k]) ** 2 + s2[k] * (z2 - m2[k]) ** 2;
        densities[k] = far < 40 ? height[k] * Math.exp(-far) : 0;
      }
      COUNTS.forEach((size, at) => {
        const first = own - (own % size);
        let sum = 0;
        for (let k = first; k < first + size; k++) sum += densities[k];
        entropies[at] += weight * (LN_TWO_PI - Math.log(sum / size));
      });
    });
  });
  return entropies.map((sum) => sum / count);
}

// ----------------------------------------------------------------------------------------------------------- bounds

/** The corruptions of `image` that are drawn from `seed`, and what the encoder answers to them. */
export function corruptedPosteriors(network, image, level, seed) {
  const noisy = new Float32Array(PIXELS);
  return Array.from({ length: DRAWS }, (_, draw) => {
    corrupt(0, level, image, FIRST_DRAW + DRAWS * seed + draw, noisy);
    return network.encode(noisy);
  });
}

/** The bound of the clean image, and L_K for each K of COUNTS.
 *
 * L_K is the mean, over the DRAWS / K mixtures of K corruptions each, of E[ln p(x, z)] plus the mixture's entropy. All
 * K share the first of these, so that they differ by entropies alone, and rise with K as the bounds themselves do. */
export function bounds(network, image, level, seed) {
  const projected = network.project(image);
  const clean = network.encode(image);
  const posteriors = corruptedPosteriors(network, image, level, seed);
  const elbo =
    expectedLogLikelihood(network, projected, clean, NODES.clean) + expectedLogPrior(clean) + gaussianEntropy(clean);
  if (level === 0) return { clean, posteriors, elbo, climb: COUNTS.map(() => elbo) }; // all are the clean picture's
  let energy = 0; // minus E ln p(x, z)
  posteriors.forEach((posterior, n) => {
    const likelihood = expectedLogLikelihood(network, projected, posterior, NODES.likelihood, n * TURN);
    energy -= (likelihood + expectedLogPrior(posterior)) / DRAWS;
  });
  return { clean, posteriors, elbo, climb: mixtureEntropies(posteriors).map((entropy) => entropy - energy) };
}

/** The same bounds of the same corruptions, { elbo, climb }, with grids as fine as it takes. A generator, since this
 * takes a second or more.
 *
 * Each of the DRAWS means may be ten times as far off as the clean picture's, since their mean counts. Each grid has
 * a place of its own, that their errors average out. */
export function* refine(network, image, level, seed) {
  const projected = network.project(image);
  const likelihood = (z1, z2) => network.logLikelihood(projected, z1, z2);
  const clean = network.encode(image);
  const ofClean = yield* refinedMean(clean, FINE.clean, [0.5, 0.5], likelihood);
  const elbo = ofClean + expectedLogPrior(clean) + gaussianEntropy(clean);
  if (level === 0) return { elbo, climb: COUNTS.map(() => elbo) };
  const posteriors = corruptedPosteriors(network, image, level, seed);
  let energy = 0;
  for (const [n, posterior] of posteriors.entries()) {
    const shift = [(0.755 * n) % 1, (0.57 * n) % 1]; // evenly spread
    const ofNoisy = yield* refinedMean(posterior, FINE.likelihood, shift, likelihood);
    energy -= (ofNoisy + expectedLogPrior(posterior)) / DRAWS;
  }
  return { elbo, climb: mixtureEntropies(posteriors, FINE.entropy).map((entropy) => entropy - energy) };
}

// ------------------------------------------------------------------------------------------------ the log-likelihood

/** Fill the table of a network, a row of codes at a time: of each code the sum of ln(1 + e^logit), of every second
 * its hidden layer as well. A generator, so that whoever fills it can do something else between two rows. */
export function* fillTable(network) {
  const { limit, nodes, every } = GRID;
  const kept = (nodes - 1) / every + 1;
  const table = { softplus: new Float64Array(nodes ** 2), hidden: new Float32Array(kept ** 2 * network.width) };
  for (let i = 0, n = 0; i < nodes; i++) {
    for (let j = 0; j < nodes; j++, n++) {
      const hidden = network.hidden(axis(i), axis(j));
      table.softplus[n] = network.softplus(hidden);
      if (i % every || j % every) continue;
      table.hidden.set(hidden, ((i / every) * kept + j / every) * network.width);
    }
    yield (i + 1) / nodes;
  }
  return { ...table, limit };
}

const axis = (number) => -GRID.limit + (2 * GRID.limit * number) / (GRID.nodes - 1);

/** ln p(image), the sum of p(image, z) over a grid of codes times the area of a cell, with the cells that matter.
 *
 * Where cells at the edge of the grid are among them, the sum is `open`: less than ln p(image) by what lies beyond.
 * The table says where p(image, z) may be large, and there the sum is formed at its spacing. Where every second code
 * alone gives another value, the cells that matter are divided into four, again and again, and decoded. */
export function evidence(network, table, image) {
  const projected = network.project(image);
  let width = axis(1) - axis(0);
  let cells = promisingCells(network, table, projected);
  const logSum = (some, side) => logSumExp(some.map(({ value }) => value)) + 2 * Math.log(side) - LN_TWO_PI;
  let value = logSum(cells, width);
  let before = logSum(cells.filter(({ even }) => even), 2 * width);
  for (let depth = 0; Math.abs(value - before) > 3e-4 && depth < 5; depth++) {
    const least = highest(cells) - (depth ? 16 : 40); // a coarse grid may miss a peak by many nats
    cells = cells.filter((cell) => cell.value > least).flatMap((cell) => quarters(network, projected, cell, width));
    width /= 2;
    [before, value] = [value, logSum(cells, width)];
  }
  const top = highest(cells);
  const matter = cells.filter((cell) => cell.value > top - 6);
  const open = matter.some(({ z1, z2 }) => Math.max(Math.abs(z1), Math.abs(z2)) > GRID.limit - 0.1);
  return { value, cells, width, top, matter, open };
}

const highest = (cells) => cells.reduce((most, { value }) => Math.max(most, value), -Infinity);

/** The cells of the table whose ln p(image, z) may come near the largest, as { z1, z2, value, even }. */
function promisingCells(network, { softplus, hidden }, projected) {
  const { nodes, every } = GRID;
  const kept = (nodes - 1) / every + 1;
  const rough = new Float64Array(kept * kept);
  for (let i = 0, n = 0; i < kept; i++) {
    for (let j = 0; j < kept; j++, n++) {
      const prior = (axis(every * i) ** 2 + axis(every * j) ** 2) / 2;
      const likelihood = dot(projected.slopes, hidden, n * network.width) - softplus[every * (nodes * i + j)];
      rough[n] = projected.constant + likelihood - prior;
    }
  }
  // between two codes it may change by many nats
  const least = rough.reduce((most, value) => Math.max(most, value), -Infinity) - 200;
  const cells = [];
  rough.forEach((height, n) => {
    if (height < least) return;
    const [row, column] = [Math.floor(n / kept), n % kept];
    for (let i = every * row; i < Math.min(every * (row + 1), nodes); i++) {
      for (let j = every * column; j < Math.min(every * (column + 1), nodes); j++) {
        const [z1, z2] = [axis(i), axis(j)];
        const likelihood = network.logLikelihood(projected, z1, z2, softplus[nodes * i + j]);
        cells.push({ z1, z2, value: likelihood - (z1 * z1 + z2 * z2) / 2, even: i % 2 === 0 && j % 2 === 0 });
      }
    }
  });
  return cells;
}

function quarters(network, projected, cell, width) {
  return [[-1, -1], [-1, 1], [1, -1], [1, 1]].map(([right, up]) => {
    const [z1, z2] = [cell.z1 + (right * width) / 4, cell.z2 + (up * width) / 4];
    return { z1, z2, value: network.logLikelihood(projected, z1, z2) - (z1 * z1 + z2 * z2) / 2 };
  });
}

/** Answer questions { kind, index, key, image, ... } by { kind, key, ... }, those of kind "evidence" by ln p(image), of
 * kind "bounds" by the refined ones; the first about a network brings its `layers`, and of each kind only the last
 * counts. Runs in a worker, or where there can be none beside the page's other work. */
export function serve(scope = globalThis) {
  const [networks, tables, filling, jobs] = [new Map(), new Map(), new Map(), new Map()];
  let busy = false;
  const work = {
    *evidence({ index, image }) {
      if (!filling.has(index)) filling.set(index, fillTable(networks.get(index)));
      while (!tables.has(index)) {
        const { done, value } = filling.get(index).next();
        if (done) tables.set(index, value);
        yield;
      }
      const { value, width, top, matter, open } = evidence(networks.get(index), tables.get(index), image);
      const share = (cell) => [cell.z1, cell.z2, Math.exp(cell.value - top)];
      return { value, width, open, cells: Float32Array.from(matter.flatMap(share)) };
    },
    bounds: ({ index, image, level, seed }) => refine(networks.get(index), image, level, seed),
  };
  const advance = (kind) => {
    const { key, steps } = jobs.get(kind);
    for (const start = performance.now(); performance.now() - start < 30; ) {
      const { done, value } = steps.next();
      if (!done) continue;
      jobs.delete(kind);
      scope.postMessage({ kind, key, ...value });
      return;
    }
  };
  const run = async () => {
    busy = true;
    while (jobs.size) {
      for (const kind of [...jobs.keys()]) {
        advance(kind);
        await new Promise((done) => setTimeout(done)); // for questions to come in
      }
    }
    busy = false;
  };
  scope.onmessage = ({ data }) => {
    if (data.layers) networks.set(data.index, new Precise(data.layers, data.activation));
    jobs.set(data.kind, { key: data.key, steps: work[data.kind](data) });
    if (!busy) run();
  };
}

/** Ask a worker of this module, see `serve`. `ask` returns the answer where it is known, else null, and
 * calls `changed` when it comes. */
function makeOracle(source, sheets, changed) {
  const [answers, told, waiting] = [new Map(), new Set(), new Map()]; // the last, of each kind: the key asked about
  let worker = null;
  const receive = (data) => {
    if (answers.size > 300) answers.clear();
    answers.set(`${data.kind} ${data.key}`, data);
    if (waiting.get(data.kind) === data.key) waiting.delete(data.kind);
    changed();
  };
  const here = { postMessage: receive };
  const post = (data) => (worker ? worker.postMessage(data) : here.onmessage({ data }));
  const stay = (broken) => {
    worker = null;
    told.clear();
    waiting.clear();
    serve(here);
    if (broken) changed(); // where none may start, nothing is drawn yet
  };
  worker = startWorker(source, (_, data) => receive(data), stay); // null in a page that allows none
  return {
    ask(kind, index, key, question) {
      if (waiting.get(kind) !== key && !answers.has(`${kind} ${key}`)) {
        waiting.set(kind, key);
        const { layers, activation } = sheets[index].network;
        post({ kind, index, key, ...question, ...(told.has(index) ? {} : { layers, activation }) });
        told.add(index);
      }
      return answers.get(`${kind} ${key}`) ?? null;
    },
    stop: () => worker?.terminate(),
  };
}

// ------------------------------------------------------------------------------------------------------------- page

const TRUTH = "#56b4e9"; // blue: the true posterior
const nats = (value) => decimal(value);
/** Round upwards to 1, 2 or 5 times a power of ten. */
const roundUp = (value) => {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 5, 10].find((factor) => factor * power >= value * (1 - 1e-9));
};

/** The part of the axis that is shown, and the distance of its ticks. It begins at 0, or where the differences would be
 * lost beside the values, a little above the highest. */
export function axisOf(values) {
  const known = values.filter((value) => !Number.isNaN(value));
  const [high, low] = [Math.max(...known), Math.min(...known, -1)];
  const span = Math.max(high - low, 0.5);
  if (high > -span) return { top: 0, bottom: 1.02 * low, step: roundUp(-low / 6) };
  const step = roundUp((1.3 * span) / 5);
  return { top: step * Math.ceil((high + 0.2 * span) / step), bottom: low - 0.02 * span, step };
}

/** Bars that hang from 0, on one axis in nats: each is a list of parts, { kind, size }, from the top. */
function makeLadder(number) {
  const ticks = make("div", { class: "dvae-rungs" });
  const line = make("i", { class: "dvae-level" });
  const bars = Array.from({ length: number }, () => {
    const [name, box, value] = [make("span", { class: "dvae-name" }), make("div"), make("b")];
    return { name, box, value, element: make("li", {}, name, make("div", { class: "dvae-hang" }, box, value)) };
  });
  const list = make("ol", {}, ...bars.map(({ element }) => element));
  const well = make("div", { class: "dvae-well" }, ticks, line);
  const figure = make("figure", { class: "dvae-ladder", role: "img" }, well, list);
  return {
    element: figure,
    draw(rows, level, words) {
      const { top, bottom, step } = axisOf(rows.map(({ value }) => value));
      const height = (size) => `${(100 * size) / (top - bottom)}%`;
      const count = Math.floor((top - bottom) / step) + 1;
      const text = (value) => (value ? `\u2212${(-value).toFixed(step < 1 ? 1 : 0)}` : "0");
      ticks.replaceChildren(
        ...Array.from({ length: count }, (_, i) =>
          make("span", { style: `top:${height(i * step)}` }, text(top - i * step)),
        ),
      );
      figure.classList.toggle("dvae-torn", top < 0);
      line.hidden = level === null;
      line.style.top = height(level === null ? 0 : top - level);
      rows.forEach(({ name, parts, value }, i) => {
        const { box, ...bar } = bars[i];
        const [letter, index] = name;
        bar.name.replaceChildren(letter, ...(index ? [make("sub", {}, index)] : []));
        box.replaceChildren(
          ...parts
            .filter(({ size }) => size > 0)
            .map(({ kind, size }) => {
              const shown = kind === "base" ? size + top : size;
              const label = shown / (top - bottom) > 0.065 && kind !== "base" ? [nats(size)] : [];
              return make("i", { class: `dvae-part dvae-${kind}`, style: `height:${height(shown)}` }, ...label);
            }),
        );
        const depth = Number.isNaN(value) ? 0 : (top - value) / (top - bottom);
        bar.value.style.top = `calc(${depth} * var(--dvae-depth))`;
        bar.value.textContent = Number.isNaN(value) ? "\u2026" : nats(value);
      });
      figure.setAttribute("aria-label", words);
    },
  };
}

/** A part of the code plane, as large as what is drawn on it, with the whole plane in a corner. */
function makeWindow(view) {
  const canvas = make("canvas", { width: PLANE, height: PLANE, class: "dvae-plane", role: "img" });
  const context = canvas.getContext("2d");
  const ends = [0, 1, 2].map(() => make("span"));
  let part = { limit: 1 };
  const ellipse = ({ mean, logVariance }) => {
    const radius = (j) => Math.max(2, (Math.exp(logVariance[j] / 2) * PLANE) / part.limit);
    context.beginPath();
    context.ellipse(...place(mean, part), radius(0), radius(1), 0, 0, 2 * Math.PI);
  };
  const stroke = (colour, width) => Object.assign(context, { strokeStyle: colour, lineWidth: width }).stroke();
  return {
    canvas,
    element: make("div", { class: "dvae-plane-box" }, canvas, make("div", { class: "dvae-ticks" }, ...ends)),
    /** Look at `centre` and what is within `limit` of it, to the left, right, top and bottom. */
    look(centre, limit) {
      part = { limit, centre };
      context.globalAlpha = 1;
      context.fillStyle = GROUND;
      context.fillRect(0, 0, PLANE, PLANE);
      ends[0].textContent = decimal(centre[0] - limit);
      const upwards = `z\u2082 \u2191 from ${decimal(centre[1] - limit)} to ${decimal(centre[1] + limit)}`;
      ends[1].textContent = `z\u2081 \u2192  ${upwards}`;
      ends[2].textContent = decimal(centre[0] + limit);
    },
    /** Shade cells of a grid, (z1, z2, share) one after the other, blurred from each to the next. */
    shade(cells, width, [red, green, blue]) {
      const near = [...cells.keys()].filter(
        (i) => i % 3 === 0 && [0, 1].every((j) => Math.abs(cells[i + j] - part.centre[j]) < part.limit + 2 * width),
      );
      const count = Math.ceil((2 * part.limit) / width) + 6;
      if (!near.length || count > 1000) return;
      const [left, top] = [Math.min(...near.map((i) => cells[i])), Math.max(...near.map((i) => cells[i + 1]))];
      const small = make("canvas", { width: count, height: count });
      const data = small.getContext("2d").createImageData(count, count);
      for (const i of near) {
        const [x, y] = [Math.round((cells[i] - left) / width) + 1, Math.round((top - cells[i + 1]) / width) + 1];
        data.data.set([red, green, blue, 235 * cells[i + 2] ** 0.7], 4 * (y * count + x));
      }
      small.getContext("2d").putImageData(data, 0, 0);
      const scale = (width * PLANE) / (2 * part.limit);
      const x = ((1 + (left - part.centre[0]) / part.limit) * PLANE) / 2 - 1.5 * scale;
      const y = ((1 - (top - part.centre[1]) / part.limit) * PLANE) / 2 - 1.5 * scale;
      Object.assign(context, { imageSmoothingEnabled: true, imageSmoothingQuality: "high" });
      context.drawImage(small, x, y, count * scale, count * scale);
    },
    /** The ellipses of two standard deviations of many Gaussians: the first `bright` stand out. */
    cloud(posteriors, colour, bright) {
      posteriors.toReversed().forEach((posterior, i) => {
        const first = posteriors.length - 1 - i < bright;
        context.globalAlpha = first ? 0.95 : 0.28;
        ellipse(posterior);
        stroke(colour, first ? 1.8 : 1.2);
      });
      context.globalAlpha = 1;
    },
    ellipse(posterior, colour) {
      ellipse(posterior);
      stroke(GROUND, 6);
      stroke(colour, 3.5);
    },
    /** The whole plane in the upper left corner, with a frame around the part that is seen. */
    overview(sheet, limit) {
      const [size, margin] = [118, 8];
      context.fillStyle = GROUND;
      context.fillRect(margin, margin, size, size);
      if (view.complete) {
        for (const layer of ["manifold", "dots"]) {
          context.globalAlpha = layer === "dots" ? 0.8 : 1;
          context.drawImage(sheet.layer(layer, limit, 1), margin, margin, size, size);
        }
        context.globalAlpha = 1;
      }
      const whole = { limit, left: margin, top: margin, size };
      const half = Math.max(3, (part.limit / limit) * (size / 2));
      const [x, y] = place(part.centre, whole);
      context.beginPath();
      context.rect(margin, margin, size, size);
      stroke("#8a939c", 1.5);
      context.beginPath();
      context.rect(x - half, y - half, 2 * half, 2 * half);
      stroke(WHITE, 2);
    },
  };
}

/** A square part of the plane that holds the clean Gaussian, most of the others and the posterior: its centre and the
 * distance from there to its edges, which changes in steps. */
function frameOf({ clean, posteriors }, answer) {
  const extent = [0, 1].map((j) => {
    const reach = ({ mean, logVariance }) => [-2, 2].map((side) => mean[j] + side * Math.exp(logVariance[j] / 2));
    const sorted = posteriors.map(({ mean }) => mean[j]).sort((a, b) => a - b);
    const most = [sorted[Math.floor(0.1 * DRAWS)], sorted[Math.ceil(0.9 * DRAWS) - 1]];
    const cells = answer ? [...answer.cells].filter((_, i) => i % 3 === j && answer.cells[i - j + 2] > 0.1) : [];
    let [low, high] = [Infinity, -Infinity];
    for (const value of [...reach(clean), ...most, ...cells]) {
      [low, high] = [Math.min(low, value), Math.max(high, value)];
    }
    return [low, high];
  });
  const half = roundUp(Math.max(0.1, 0.6 * Math.max(...extent.map(([low, high]) => high - low))));
  const centre = extent.map(([low, high]) => (Math.round((10 * (low + high)) / 2 / half) * half) / 10);
  return { centre, half };
}

function bound({ get, set, root, sheets, say, model, view }) {
  const limit = get("limit");
  const clean = cleanPicture({ get, set });
  const noisy = new Float32Array(PIXELS);
  const editor = makePicture("picture x: draw on it");
  const input = makePicture("one of its 64 corruptions");
  const markCursor = makeEditable(editor, clean, view.redraw);
  const legend = make(
    "p",
    { class: "dvae-legend" },
    swatch(TRUTH, "shaded: posterior p(z|x)"),
    swatch(CLEAN, "thick ring: q(z|x), clean picture"),
    swatch(NOISY, "thin rings: q(z|x\u2032), corrupted; K of them bright"),
  );
  const tools = make(
    "div",
    { class: "dvae-tools" },
    freshNoise({ get, set }),
    ...drawingButtons(set),
    legend,
  );
  const ladder = makeLadder(4);
  const gaps = make("ul", { class: "dvae-gaps" });
  const plane = makeWindow(view);
  const [title, planeTitle] = [makeTitle("Log-likelihood and bounds, in nats"), makeTitle("")];
  const reading = make("p", { class: "dvae-reading" });
  root.append(
    make("div", { class: "dvae-inputs" }, editor.element, input.element, tools),
    make(
      "div",
      { class: "dvae-pair dvae-bound" },
      make("section", { class: "dvae-panel" }, title, ladder.element, gaps),
      make("section", { class: "dvae-panel" }, planeTitle, plane.element),
    ),
    reading,
  );
  dropDrawing({ model, get, set });
  const oracle = makeOracle(get("_esm"), sheets, view.redraw);
  let [known, found] = ["", null]; // what was computed last, and for what
  const compute = (index, wanted) => {
    if (known === wanted) return;
    known = wanted;
    const { layers, activation } = sheets[index].network;
    sheets[index].precise ??= new Precise(layers, activation);
    found = bounds(sheets[index].precise, clean.image, get("level"), get("seed"));
  };
  return {
    traits: ["index", "row", "column", "drawing", "level", "seed", "count"],
    dispose: oracle.stop,
    draw() {
      const [index, K] = [get("index"), COUNTS[get("count")]];
      const sheet = sheets[index];
      clean.read();
      corrupt(0, get("level"), clean.image, FIRST_DRAW + DRAWS * get("seed"), noisy);
      editor.draw(clean.image);
      markCursor();
      input.draw(noisy);
      const key = `${index} ${toHex(clean.image)}`;
      const image = clean.image.slice();
      const answer = oracle.ask("evidence", index, key, { image });
      const wanted = `${key} ${get("level")} ${get("seed")}`;
      compute(index, wanted);
      const refined = oracle.ask("bounds", index, wanted, { image, level: get("level"), seed: get("seed") });
      const { climb: all, elbo } = refined ?? found; // these are at hand, and a few hundredths of a nat off
      const [dvae, climb] = [all[0], all[get("count")]];
      const seen = account({ exact: answer?.value ?? NaN, open: answer?.open, dvae, climb, elbo }, K);
      const { rows, sizes, words, text } = seen;
      ladder.draw(rows, answer ? answer.value : null, words);
      gaps.replaceChildren(
        ...sizes.map(({ kind, label, size }) =>
          make("li", {}, make("i", { class: `dvae-part dvae-${kind}` }), make("span", {}, label), make("b", {}, size)),
        ),
      );
      const pieces = text.split(/(?<=L)_(dvae)/); // every second one is an index
      reading.replaceChildren(...pieces.map((piece, i) => (i % 2 ? make("sub", {}, piece) : piece)));
      planeTitle.textContent = `Codes of the ${sheet.name}, magnified`;
      const { centre, half } = frameOf(found, answer);
      plane.look(centre, half);
      if (answer) plane.shade(answer.cells, answer.width, MISSING);
      plane.cloud(found.posteriors, NOISY, K);
      plane.ellipse(found.clean, CLEAN);
      plane.overview(sheet, limit);
      const spread = `${DRAWS} posteriors of corrupted pictures, that of the clean one, and the true posterior`;
      plane.canvas.setAttribute("aria-label", `Code plane of the ${sheet.name} around ${pair(centre)}: ${spread}`);
      root.setAttribute("aria-busy", String(!(answer && refined)));
      if (refined) say(`${sheet.name}. ${words} ${text.replaceAll("_", " ")}`);
    },
  };
}

/** The bars, the gaps between them, and both in words. `exact` is NaN as long as it is not known, and a lower limit
 * where it is `open`. */
export function account({ exact, open = false, dvae, climb, elbo }, K) {
  const pending = Number.isNaN(exact);
  const part = (kind, size) => ({ kind, size });
  const base = (value) => part("base", pending ? Math.max(0, -value) : -exact);
  const gap = (kind, size) => (pending ? [] : [part(kind, size)]);
  const [mixture, regained, clean] = [exact - climb, climb - dvae, exact - elbo];
  const rows = [
    { name: ["ln p(x)"], value: exact, parts: pending ? [] : [base(exact)] },
    { name: ["L", String(K)], value: climb, parts: [base(climb), ...gap("mixture", mixture)] },
    {
      name: ["L", "dvae"],
      value: dvae,
      parts: [base(climb), ...gap("mixture", mixture), part("corruption", regained)],
    },
    { name: ["clean ELBO"], value: elbo, parts: [base(elbo), ...gap("amortisation", clean)] },
  ];
  const show = (size) => (Number.isNaN(size) ? "\u2026" : nats(size));
  const sizes = [
    { kind: "mixture", label: `mixture: ln p(x) above L${subscript(K)}`, size: show(mixture) },
    { kind: "corruption", label: `corruption: regained with K = ${K}`, size: show(regained) },
    { kind: "amortisation", label: "family and amortisation: above the clean ELBO", size: show(clean) },
  ];
  const likelihood = pending ? "ln p(x) is being counted" : `ln p(x) ${open ? "at least " : ""}${nats(exact)}`;
  const words = `${likelihood}, L ${K} ${nats(climb)}, L dvae ${nats(dvae)}, clean ELBO ${nats(elbo)} nats.`;
  return { rows, sizes, words, text: inReading({ pending, exact, open, dvae, climb, elbo }, K) };
}

const subscript = (number) => String(number).replace(/\d/g, (digit) => String.fromCharCode(0x2080 + Number(digit)));

function inReading({ pending, exact, open, dvae, climb, elbo }, K) {
  const apart = nats(Math.abs(elbo - dvae));
  const clean = `The bound of the clean picture lies ${apart} nats ${elbo < dvae ? "below" : "above"} L_dvae`;
  if (pending) return `ln p(x) is being counted, over a grid of decoded codes. ${clean}.`;
  if (open) {
    const beyond = `Codes that matter lie beyond the grid, and ln p(x) is more than the ${nats(exact)} found within it`;
    return `${beyond}: the gaps of mixture, family and amortisation are too small. ${clean}.`;
  }
  const whole = `Of the ${nats(exact - dvae)} nats between ln p(x) and L_dvae, `;
  const split =
    K === 1
      ? "one corruption regains nothing: raise K."
      : `${K} corruptions regain ${nats(climb - dvae)}, a part of the price of naming the corruption; ` +
        `the other ${nats(exact - climb)} are the mixture's, and what ${K} corruptions leave.`;
  return `${whole}${split} ${clean}.`;
}

EXPLORERS.bound = bound;
