// The arithmetic of the network that learns in the page, against numbers that PyTorch computed: tests/test_learner.py
// writes them and runs this file.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import * as learner from "../../dvae_lib/widgets/learner.mjs";
import * as widgets from "../../dvae_lib/widgets/widgets.mjs";

const { BATCH, CODE, HIDDEN, Learner, PARAMETERS } = learner;
const fixture = JSON.parse(readFileSync(process.env.DVAE_FIXTURE, "utf8"));
const PARTS = ["weights", "biases"];

/** PyTorch's weight matrices lie row by row. */
const transposed = ({ rows, columns }, values) =>
  values.map((_, i) => values[(i % rows) * columns + Math.floor(i / rows)]);
const load = (layers, wanted) => {
  layers.forEach((layer, i) => {
    layer.weights.set(transposed(layer, wanted[i].weights));
    layer.biases.set(wanted[i].biases);
  });
};

/** The largest difference, as a part of the largest value wanted. */
const off = (found, wanted) => {
  assert.equal(found.length, wanted.length);
  const [most, largest] = [(value, i) => Math.abs(value - found[i]), Math.abs].map((f) =>
    wanted.reduce((max, value, i) => Math.max(max, f(value, i)), 0),
  );
  return most / largest;
};

/** Each layer's weights and biases, against PyTorch's. */
const assertLayers = (layers, wanted, tolerance, what) => {
  layers.forEach((layer, i) => {
    const values = { weights: transposed(layer, wanted[i].weights), biases: wanted[i].biases };
    for (const part of PARTS) {
      const found = off(layer[part], values[part]);
      assert.ok(found < tolerance, `${what} of layer ${i}, ${part}: off by ${found}`);
    }
  });
};

const handed = () => {
  const one = new Learner(0);
  load(one.layers, fixture.layers);
  for (const name of ["images", "inputs", "eps"]) one[name].set(fixture[name]);
  return one;
};

test("on the same weights, batch and noise objective and gradient, by every parameter, are PyTorch's", () => {
  const one = handed();
  for (let pass = 0; pass < 2; pass++) { // nothing is left of the pass before
    one.forward();
    one.backward();
    assert.ok(Math.abs(one.reconstruction / fixture.reconstruction - 1) < 1e-6);
    assert.ok(Math.abs(one.divergence / fixture.divergence - 1) < 1e-6);
    assertLayers(one.slopes, fixture.gradient, 1e-5, "gradient");
  }
});

test("Adam moves the weights as PyTorch's does, step after step", () => {
  const one = handed();
  assert.equal(learner.RATE, fixture.rate);
  for (const wanted of fixture.adam) {
    load(one.slopes, wanted.gradient);
    one.adam();
    assertLayers(one.layers, wanted.layers, 1e-6, `weights after step ${one.steps}`);
  }
});

test("a run is PyTorch's with the same draws: first weights, batches, flips, codes and all", () => {
  const one = new Learner(fixture.run.seed);
  assertLayers(one.layers, fixture.run.first, 1e-6, "first weights");
  for (const [reconstruction, divergence] of fixture.run.curves) {
    one.step(fixture.run.p);
    assert.ok(Math.abs(one.reconstruction / reconstruction - 1) < 1e-4, `${one.reconstruction} at ${one.steps}`);
    assert.ok(Math.abs(one.divergence / divergence - 1) < 1e-3, `${one.divergence} at ${one.steps}`);
  }
});

test("codes, manifold and the squares that stand are PyTorch's", () => {
  const { least, codes, standing, row, column, tile } = fixture.survey;
  const found = learner.survey(handed().network, 4, least);
  assert.ok(off(found.codes, codes) < 1e-5);
  assert.equal(found.standing, standing);
  const wanted = tile.map((value) => widgets.DIM[Math.round(255 * value)] & 255);
  const shown = tile.map((_, i) => {
    const [y, x] = [24 * row + Math.floor(i / 24), 24 * column + (i % 24)];
    return found.ground[y * widgets.PLANE + x] & 255;
  });
  assert.ok(wanted.every((value, i) => Math.abs(value - shown[i]) <= 1));
  assert.ok(Math.max(...wanted) - Math.min(...wanted) > 20);
});

test("a square stands if it comes back with an overlap of nine tenths", () => {
  let [seen, number] = [new Float32Array(576), 0];
  const network = {
    size: 24,
    encode: (image) => ([seen, number] = [image, number + 1]),
    decode(_, picture) { // what came in, without 8 pixels of its 81, or without 9
      let lost = number % 2 ? 8 : 9;
      picture.set(seen.map((value) => (value && lost-- > 0 ? 0 : value)));
    },
  };
  assert.equal(learner.survey(network, 4).standing, 128);
});

test("all parameters are counted, and lie in one array", () => {
  const one = new Learner(3);
  assert.equal(PARAMETERS, 2 * HIDDEN ** 2 + 1162 * HIDDEN + 580); // the chapter "The model"
  assert.deepEqual([one.images.length, one.eps.length], [BATCH * 576, BATCH * CODE]);
  one.parameters.fill(7);
  assert.ok(one.layers.every((layer) => PARTS.every((part) => layer[part].every((value) => value === 7))));
});

test("a batch holds squares, flips come as often as they should, more noise flips the same pixels and more", () => {
  const flips = (p) => {
    const one = new Learner(5);
    one.draw(p);
    return { one, flipped: one.images.map((value, i) => Number(value !== one.inputs[i])) };
  };
  const [low, high] = [0.1, 0.3].map(flips);
  assert.deepEqual(low.one.images, high.one.images);
  assert.deepEqual(low.one.eps, high.one.eps);
  assert.ok(low.flipped.every((value, i) => value <= high.flipped[i]));
  const [count, n] = [low.flipped.reduce((sum, value) => sum + value), BATCH * 576];
  assert.ok(Math.abs(count - 0.1 * n) < 5 * Math.sqrt(0.09 * n), `${count} of ${n}`);
  assert.ok(flips(0).flipped.every((value) => value === 0));
  for (let k = 0; k < BATCH; k++) {
    const image = low.one.images.slice(576 * k, 576 * (k + 1));
    assert.ok(low.one.squares.some((square) => square.every((value, i) => value === image[i])));
  }
});

test("the same seed, noise and number of steps give the same weights to the last bit; another seed, other ones", () => {
  const run = (seed) => {
    const one = new Learner(seed);
    for (let step = 0; step < 20; step++) one.step(step < 10 ? 0.1 : 0.2);
    return one.parameters;
  };
  assert.deepEqual(run(4), run(4));
  assert.notDeepEqual(run(4), run(5));
});

// The worker, with a page that only listens

/** Call serve() with a scope of its own; `wait` resolves when a message fulfils a condition. */
const worker = () => {
  const [heard, waiting] = [[], []];
  const scope = {
    postMessage(message) {
      heard.push(message);
      setTimeout(() => scope.onmessage({ data: { drawn: true } })); // as the page answers
      for (const { condition, resolve } of waiting) if (condition(message)) resolve(message);
    },
  };
  learner.serve(scope);
  const post = (data) => scope.onmessage({ data });
  const wait = (condition) => new Promise((resolve) => waiting.push({ condition, resolve }));
  return { heard, post, wait };
};
const quick = { seed: 2, p: 0.1, speed: 2, every: 1 };

test("a worker's run does not depend on its speed, nor on pauses and single steps", async () => {
  const [plain, one] = [new Learner(2), worker()];
  one.post(quick);
  one.post({ step: true });
  assert.equal(one.heard.at(-1).steps, 1); // at once, and one
  one.post({ speed: 1, running: true });
  await one.wait((message) => message.steps >= 4);
  one.post({ running: false });
  const [paused] = one.heard.slice(-1);
  assert.equal(paused.running, false);
  await new Promise((resolve) => setTimeout(resolve, 100));
  assert.equal(one.heard.at(-1), paused); // and nothing more
  for (let more = 0; more < 5; more++) one.post({ step: true });
  const steps = paused.steps + 5;
  while (plain.steps < steps) plain.step(0.1);
  assert.equal(one.heard.at(-1).steps, steps);
  assert.deepEqual(one.heard.at(-1).parameters, plain.parameters);
  const rows = one.heard.flatMap(({ rows: some }) => [...some]); // each step is told once
  assert.equal(rows.length, 3 * steps);
  assert.deepEqual(rows.slice(-3), [plain.reconstruction, plain.divergence, 0.1].map(Math.fround));
});

test("noise that is set during a run holds from the next batch on", () => {
  const [plain, one] = [new Learner(2), worker()];
  [0.1, 0.3].forEach((p) => plain.step(p));
  one.post(quick);
  one.post({ step: true });
  one.post({ p: 0.3 });
  one.post({ step: true });
  assert.deepEqual(one.heard.at(-1).parameters, plain.parameters);
});

test("a worker waits with its next picture until the last one is drawn", async () => {
  const heard = [];
  const scope = { postMessage: (message) => heard.push(message) };
  learner.serve(scope);
  scope.onmessage({ data: { ...quick, speed: 1, running: true } });
  await new Promise((resolve) => setTimeout(resolve, 800));
  assert.equal(heard.length, 1);
  scope.onmessage({ data: { running: false } }); // a pause is told all the same
  assert.equal(heard.length, 2);
  assert.ok(heard[1].steps > heard[0].steps);
});

test("a run ends by itself", async () => {
  const one = worker();
  one.post({ ...quick, most: 3, running: true });
  const last = await one.wait(({ running }) => !running);
  assert.equal(last.steps, 3);
  one.post({ step: true });
  assert.equal(one.heard.at(-1).steps, 3);
});
