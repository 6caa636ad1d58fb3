// The explorers' arithmetic, against numbers that PyTorch computed: tests/test_js.py writes them and runs this file.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import * as widgets from "../../dvae_lib/widgets/widgets.mjs";
import { assertNetworksAgree } from "./compare.mjs";

const { PIXELS, SIZE, normal, uniforms } = widgets;
const fixture = JSON.parse(readFileSync(process.env.DVAE_FIXTURE, "utf8"));
const bytes = new Uint8Array(Buffer.from(fixture.weights, "base64"));
const read = (data = bytes) => widgets.readNetworks(data, fixture.shapes, fixture.levels.length);
const squares = widgets.allSquares();

const sum = (values) => values.reduce((total, value) => total + value, 0);
const mean = (values) => sum(values) / values.length;
const many = (n, draw) => Array.from({ length: n }, draw);

/** Five standard errors: a right frequency fails once in 1.7 million. */
const assertFrequency = (count, n, p) =>
  assert.ok(Math.abs(count - n * p) <= 5 * Math.sqrt(n * p * (1 - p)), `${count} of ${n} at p = ${p}`);

/** Mean and variance of N(0, 1), within five standard errors. */
const assertStandard = (values) => {
  assert.ok(Math.abs(mean(values)) < 5 / Math.sqrt(values.length));
  assert.ok(Math.abs(mean(values.map((value) => value ** 2)) - 1) < 5 * Math.sqrt(2 / values.length));
};

test("the networks encode and decode as PyTorch does, and their cross-entropy agrees", () => {
  assertNetworksAgree(read(), fixture);
});

test("the weights may lie anywhere in their buffer", () => {
  const padded = new Uint8Array(bytes.length + 3);
  padded.set(bytes, 3);
  const [aligned, shifted] = [read(), read(new DataView(padded.buffer, 3))];
  assert.deepEqual(shifted[1].layers[6].weights, aligned[1].layers[6].weights);
});

test("weights of another length are refused", () => {
  assert.throws(() => read(bytes.slice(0, -1)), /end too early/);
  assert.throws(() => read(Buffer.concat([bytes, Buffer.from([0])])), /do not end/);
});

test("there are 256 squares, Python's, in its order; each takes the place of what was there", () => {
  assert.deepEqual(squares.map(widgets.toHex), fixture.squares);
  const image = new Float32Array(PIXELS).fill(1);
  widgets.paintSquare(3, 7, image);
  assert.deepEqual(image, squares[16 * 3 + 7]);
});

test("pictures survive the way to hexadecimal digits and back", () => {
  const back = new Float32Array(PIXELS);
  for (const image of fixture.images.map((values) => Float32Array.from(values, Math.round))) {
    widgets.fromHex(widgets.toHex(image), back);
    assert.deepEqual(back, image);
  }
});

test("the best square's overlap is PyTorch's, and a square finds itself", () => {
  fixture.images.forEach((image, i) => {
    assert.ok(Math.abs(widgets.bestSquare(image).overlap - fixture.overlap[i]) < 1e-6);
  });
  squares.forEach((square, i) => {
    const best = { row: Math.floor(i / 16), column: i % 16, overlap: 1, total: 81 };
    assert.deepEqual(widgets.bestSquare(square), best);
  });
});

test("words tell a square, nearly a square, another picture and none", () => {
  const image = squares[16 * 3 + 7].slice();
  assert.equal(widgets.inWords(image), "the square at row 3, column 7");
  image[SIZE * 3 + 7] = 0;
  assert.equal(widgets.inWords(image), "nearly the square at row 3, column 7, overlap 98\u00a0%");
  image.fill(0, SIZE * 5);
  assert.equal(widgets.inWords(image), "no square, best overlap 20\u00a0%"); // 17 of 81 pixels
  assert.equal(widgets.inWords(new Float32Array(PIXELS)), "no pixel set");
});

test("wrong pixels are counted at 1/2", () => {
  assert.equal(widgets.wrongPixels(squares[0], squares[1]), 18);
  const grey = Float32Array.from(squares[0], (value) => (value ? 0.5 : 0.49));
  assert.equal(widgets.wrongPixels(grey, squares[0]), 0);
});

test("uniform numbers fill [0, 1) evenly, and neighbouring seeds are independent", () => {
  const [n, cells] = [100000, 20];
  const [first, second] = [uniforms(1), uniforms(2)].map((next) => many(n, next));
  assert.ok(Math.min(...first.slice(0, 9999)) >= 0 && Math.max(...first.slice(0, 9999)) < 1);
  for (const values of [first, second]) {
    const counts = new Array(cells).fill(0);
    values.forEach((value) => counts[Math.floor(cells * value)]++);
    counts.forEach((count) => assertFrequency(count, n, 1 / cells));
  }
  const covariance = (x, y) => mean(x.map((value, i) => (value - 0.5) * (y[i] - 0.5)));
  const bound = 5 / 12 / Math.sqrt(n); // five standard errors of the mean of a product of two uniforms
  assert.ok(Math.abs(covariance(first, second)) < bound);
  assert.ok(Math.abs(covariance(first.slice(1), first)) < bound);
  assert.notDeepEqual(many(5, uniforms(1)), many(5, uniforms(2)));
  assert.deepEqual(many(5, uniforms(7)), many(5, uniforms(7)));
});

test("the first draws of many seeds are even as well", () => {
  const values = many(20000, (_, seed) => uniforms(seed)());
  assertFrequency(values.filter((value) => value < 0.1).length, values.length, 0.1);
  assert.equal(new Set(values).size, values.length);
});

test("normal numbers have the moments of N(0, 1)", () => {
  const next = uniforms(3);
  const values = many(100000, () => normal(next(), next()));
  assertStandard(values);
  [[3, 0, 15], [4, 3, 96]].forEach(([power, moment, variance]) => {
    const found = mean(values.map((value) => value ** power));
    assert.ok(Math.abs(found - moment) < 5 * Math.sqrt(variance / values.length), `moment ${power} is ${found}`);
  });
  assert.ok(Number.isFinite(normal(0, 0)) && Number.isFinite(normal(1 - 2 ** -32, 0.5)));
});

const corrupted = (kind, level, image, seed) => {
  const out = new Float32Array(PIXELS);
  widgets.corrupt(kind, level, image, seed, out);
  return out;
};

test("each kind of noise strikes as often as it should, and nowhere else", () => {
  const n = 200 * PIXELS;
  const share = { flip: [0.2, 0.8], mask: [0, 0.8], "salt and pepper": [0.1, 0.9] }; // set pixels, of 0s and of 1s
  assert.deepEqual(widgets.NOISES, fixture.noises);
  for (const [name, shares] of Object.entries(share)) {
    for (const [pixel, p] of shares.entries()) {
      const image = new Float32Array(PIXELS).fill(pixel);
      const values = many(200, (_, seed) => [...corrupted(widgets.NOISES.indexOf(name), 0.2, image, seed)]).flat();
      assert.ok(values.every((value) => value === 0 || value === 1));
      assertFrequency(sum(values), n, p);
    }
  }
});

test("Gaussian noise has its standard deviation", () => {
  const kind = widgets.NOISES.indexOf("Gaussian");
  const shift = (value, i) => (value - squares[5][i]) / 0.3;
  assertStandard(many(200, (_, seed) => [...corrupted(kind, 0.3, squares[5], seed)].map(shift)).flat());
});

test("a seed repeats its noise, a higher level strikes the same pixels and more, the image stays", () => {
  const image = squares[40].slice();
  widgets.NOISES.forEach((_, kind) => {
    assert.deepEqual(corrupted(kind, 0.2, image, 5), corrupted(kind, 0.2, image, 5));
    assert.notDeepEqual(corrupted(kind, 0.2, image, 5), corrupted(kind, 0.2, image, 6));
    assert.deepEqual(corrupted(kind, 0, image, 5), image);
  });
  const [low, high] = [0.1, 0.2].map((level) => corrupted(0, level, image, 5));
  assert.ok(low.every((value, i) => value === image[i] || high[i] === value));
  assert.deepEqual(image, squares[40]);
});

test("a drawn code has the posterior's moments", () => {
  const posterior = { mean: Float32Array.of(1, -2), logVariance: Float32Array.of(Math.log(0.25), Math.log(4)) };
  const code = new Float32Array(2);
  const draws = many(20000, (_, seed) => {
    widgets.sample(posterior, seed, code);
    return [code[0] - 1, code[1] + 2];
  });
  assertStandard(draws.map(([first]) => first / 0.5));
  assertStandard(draws.map(([, second]) => second / 2));
  assert.ok(Math.abs(mean(draws.map(([first, second]) => first * second))) < 5 / Math.sqrt(draws.length));
});

test("a code is drawn from other numbers than the noise of the same seed", () => {
  const code = new Float32Array(2);
  widgets.sample(widgets.newPosterior(), 5, code); // a draw from N(0, 1)
  const next = uniforms(5);
  assert.notDeepEqual(code, Float32Array.of(normal(next(), next()), normal(next(), next())));
});

test("a code lies to the right and upwards of the middle, and at the edge if it is beyond", () => {
  const { PLANE, place } = widgets;
  assert.deepEqual(place([0, 0], { limit: 4 }), [PLANE / 2, PLANE / 2]);
  assert.deepEqual(place([2, 3], { limit: 4 }), [0.75 * PLANE, 0.125 * PLANE]);
  assert.deepEqual(place([-9, -9], { limit: 4 }), [0, PLANE]);
  const inset = { limit: 0.5, centre: [1, -1], left: 300, top: 10, size: 100 };
  assert.deepEqual(place([1.25, -1.25], inset), [375, 85]);
});
