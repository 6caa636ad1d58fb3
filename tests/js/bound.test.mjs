// The arithmetic of "The bound, live", against PyTorch: tests/test_js.py writes the numbers and runs this file.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import * as bound from "../../dvae_lib/widgets/bound.mjs";
import { Network, crossEntropy, newPosterior, readNetworks } from "../../dvae_lib/widgets/widgets.mjs";

const fixture = JSON.parse(readFileSync(process.env.DVAE_FIXTURE, "utf8"));
const bytes = new Uint8Array(Buffer.from(fixture.weights, "base64"));
const read = readNetworks(bytes, fixture.shapes, fixture.levels.length);
const networks = read.map(({ layers }) => new bound.Precise(layers));
const found = fixture.cases.map(({ index, image, level, seed }) => bound.bounds(networks[index], image, level, seed));
const finish = (steps) => {
  for (;;) {
    const { done, value } = steps.next();
    if (done) return value;
  }
};
const close = (value, wanted, tolerance, what) =>
  assert.ok(Math.abs(value - wanted) < tolerance, `${what}: ${value} against ${wanted}`);
const gaussian = (mean, logVariance) => ({ mean, logVariance });

test("the rules integrate the moments of a normal distribution", () => {
  const double = (n) => (n < 2 ? 1 : (n - 1) * double(n - 2)); // E x^n for even n
  for (const [nodes, degree] of [[null, 7], [4, 7], [6, 11], [10, 19]]) {
    const [x, y, weights] = bound.planeRule(nodes);
    for (let i = 0; i <= degree; i++) {
      for (let j = 0; i + j <= degree; j++) {
        const mean = weights.reduce((sum, weight, k) => sum + weight * x[k] ** i * y[k] ** j, 0);
        const wanted = i % 2 || j % 2 ? 0 : double(i) * double(j);
        close(mean, wanted, 1e-9 * Math.max(1, double(degree - 1)), `${nodes} nodes, x^${i} y^${j}`);
      }
    }
  }
});

test("the encoder's answers to the corrupted pictures are PyTorch's", () => {
  fixture.cases.forEach((wanted, i) => {
    const last = found[i].posteriors.at(-1);
    for (const j of [0, 1]) {
      close(found[i].clean.mean[j], wanted.clean[0][j], 1e-9, "mean");
      close(found[i].clean.logVariance[j], wanted.clean[1][j], 1e-9, "log-variance");
      close(last.mean[j], wanted.last[0][j], 1e-9, "mean, corrupted");
      close(last.logVariance[j], wanted.last[1][j], 1e-9, "log-variance, corrupted");
    }
  });
});

test("with the same corruptions and the same nodes all bounds are PyTorch's", () => {
  assert.equal(fixture.cases.length, 50);
  fixture.cases.forEach((wanted, i) => {
    close(found[i].elbo, wanted.elbo, 1e-4, `ELBO of case ${i}`);
    found[i].climb.forEach((value, k) => close(value, wanted.climb[k], 1e-4, `L_${bound.COUNTS[k]} of case ${i}`));
  });
});

test("the refined bounds are within 0.001 nats of PyTorch's, or beyond 100 nats within a hundred thousandth", () => {
  fixture.cases.forEach(({ index, image, level, seed, ...wanted }, i) => {
    const { elbo, climb } = finish(bound.refine(networks[index], image, level, seed));
    const compare = (value, exact, what) => close(value, exact, Math.max(1e-3, 1e-5 * Math.abs(exact)), what);
    compare(elbo, wanted.fine_elbo, `ELBO of case ${i}`);
    climb.forEach((value, k) => compare(value, wanted.fine_climb[k], `L_${bound.COUNTS[k]} of case ${i}`));
  });
});

test("a refined mean is that of the closed form, with kinks and in a narrow Gaussian far out", () => {
  const posterior = gaussian([0.3, -2], [2 * Math.log(3), 2 * Math.log(0.01)]);
  const mean = (value) => finish(bound.refinedMean(posterior, 1e-4, [0.2, 0.6], value));
  close(mean((z1, z2) => z1 * z1 + z2), 9.09 - 2, 1e-4, "second moment");
  close(mean((z1, z2) => Math.abs(z1 - 0.3) + 100 * Math.abs(z2 + 2)), 4 * Math.sqrt(2 / Math.PI), 1e-4, "kinks");
});

test("without noise the refined bounds are the clean picture's, and another question ends the first", async () => {
  const [{ index, image }] = fixture.cases;
  const { elbo, climb } = finish(bound.refine(networks[index], image, 0, 3));
  assert.deepEqual(climb, [elbo, elbo, elbo, elbo]);
  const answers = [];
  const scope = { postMessage: (answer) => answers.push(answer) };
  bound.serve(scope);
  const ask = (key, level, more) =>
    scope.onmessage({ data: { kind: "bounds", index: 0, key, image, level, seed: 3, ...more } });
  ask("first", 0.2, { layers: read[index].layers });
  await new Promise((done) => setTimeout(done));
  ask("second", 0);
  while (!answers.length) await new Promise((done) => setTimeout(done, 5));
  await new Promise((done) => setTimeout(done, 100));
  assert.deepEqual(answers, [{ kind: "bounds", key: "second", elbo, climb }]);
});

test("a network of another activation is computed with its own", () => {
  const [{ layers }] = read;
  const posterior = newPosterior();
  new Network(layers, "tanh").encode(Float32Array.from(fixture.cases[0].image), posterior);
  const { mean, logVariance } = new bound.Precise(layers, "tanh").encode(fixture.cases[0].image);
  for (const j of [0, 1]) {
    close(mean[j], posterior.mean[j], 1e-4, "mean");
    close(logVariance[j], posterior.logVariance[j], 1e-4, "log-variance");
  }
  const code = Float32Array.of(0.5, -1);
  const logits = new Float32Array(576);
  new Network(layers, "tanh").decode(code, new Float32Array(576), logits);
  const precise = new bound.Precise(layers, "tanh");
  const { image } = fixture.cases[0];
  close(-precise.logLikelihood(precise.project(image), ...code), crossEntropy(logits, image), 1e-2, "log-likelihood");
});

test("the entropies of the mixtures are those of finer quadrature, and that of one Gaussian is the closed form", () => {
  fixture.cases.forEach((wanted, i) => {
    const entropies = bound.mixtureEntropies(found[i].posteriors);
    entropies.forEach((value, k) => close(value, wanted.entropies[k], 2e-3, `K = ${bound.COUNTS[k]}, case ${i}`));
    const mean = found[i].posteriors.reduce((sum, one) => sum + bound.gaussianEntropy(one), 0) / bound.DRAWS;
    close(entropies[0], mean, 1e-9, `K = 1, case ${i}`);
  });
});

test("equal Gaussians gain nothing, distant ones ln K", () => {
  const at = (place) => gaussian([place, 0], [-4, -6]);
  const equal = bound.mixtureEntropies(Array.from({ length: bound.DRAWS }, () => at(0)));
  const apart = bound.mixtureEntropies(Array.from({ length: bound.DRAWS }, (_, n) => at(10 * n)));
  bound.COUNTS.forEach((K, k) => {
    close(equal[k], bound.gaussianEntropy(at(0)), 1e-9, "equal");
    close(apart[k], bound.gaussianEntropy(at(0)) + Math.log(K), 1e-9, "apart");
  });
});

test("the bounds rise with K", () => {
  for (const { climb, elbo } of found) {
    climb.slice(1).forEach((value, k) => assert.ok(value >= climb[k] - 1e-6));
    assert.ok(Number.isFinite(elbo));
  }
});

const tables = networks.map((network) => finish(bound.fillTable(network)));

test("the log-likelihood is that of PyTorch on a finer grid", () => {
  const measured = fixture.cases.map((one, i) => [one, found[i]]).filter(([{ exact }]) => exact !== null);
  assert.ok(measured.length >= 12);
  for (const [{ index, image, exact, limit }, { climb, elbo }] of measured) {
    const { value, cells, width } = bound.evidence(networks[index], tables[index], image);
    close(value, exact, limit, `network ${index}`);
    const sum = bound.logSumExp(cells.map((cell) => cell.value)) + 2 * Math.log(width);
    close(sum - Math.log(2 * Math.PI), value, 1e-9, "the cells' sum");
    for (const one of [elbo, ...climb]) assert.ok(one < value + 1e-3);
  }
});

test("a sum over codes is open where what matters lies at the edge of the grid", () => {
  const [{ index, image }] = fixture.cases; // a square
  assert.equal(bound.evidence(networks[index], tables[index], image).open, false);
  const empty = networks.map((network, i) => bound.evidence(network, tables[i], new Float32Array(image.length)));
  assert.ok(empty.some(({ open }) => open));
  const [{ dvae, climb, elbo }, exact] = [{ dvae: -10, climb: -9, elbo: -12 }, -7];
  const { rows, text } = bound.account({ exact, open: true, dvae, climb, elbo }, 16);
  assert.equal(rows[0].value, exact);
  assert.match(text, /^Codes that matter lie beyond the grid, .* more than the \u22127\.00 .* too small\. /);
});

test("without noise all bounds are that of the clean picture, and another seed or level changes them", () => {
  const [{ index, image }] = fixture.cases;
  const { climb, elbo } = bound.bounds(networks[index], image, 0, 3);
  assert.deepEqual(climb, [elbo, elbo, elbo, elbo]);
  const [one, two, three] = [[0.1, 3], [0.1, 4], [0.2, 3]].map((some) => bound.bounds(networks[index], image, ...some));
  assert.notEqual(one.climb[0], two.climb[0]);
  assert.ok(three.climb[0] < one.climb[0]);
  assert.equal(one.elbo, three.elbo);
});

test("the parts of a bar add up to its value, and pending ones say so", () => {
  const values = { exact: -7, dvae: -10, climb: -9, elbo: -12 };
  const { rows, sizes, text } = bound.account(values, 16);
  for (const { parts, value } of rows) close(parts.reduce((sum, { size }) => sum + size, 0), -value, 1e-9, "parts");
  assert.deepEqual(sizes.map(({ size }) => size), ["2.00", "1.00", "5.00"]);
  assert.match(text, /^Of the 3\.00 nats .* 16 corruptions regain 1\.00, .* other 2\.00 .* 2\.00 nats below L_dvae\.$/);
  const pending = bound.account({ ...values, exact: NaN }, 16);
  assert.match(pending.text, /being counted/);
  for (const { parts, value } of pending.rows.slice(1)) {
    close(parts.reduce((sum, { size }) => sum + size, 0), -value, 1e-9, "parts");
  }
  assert.deepEqual(pending.sizes.map(({ size }) => size), ["\u2026", "1.00", "\u2026"]);
});

test("the axis holds all values, and begins at 0 unless the differences would be lost", () => {
  assert.deepEqual(bound.axisOf([NaN, -30, -12, -7]).top, 0);
  for (const values of [[-6.97, -7.68, -8.36, -7.69], [-70, -71, -80, -75], [-7, -7300, -7, -7], [-3, -3, -3, NaN]]) {
    const { top, bottom, step } = bound.axisOf(values);
    const known = values.filter((value) => !Number.isNaN(value));
    assert.ok(top > Math.max(...known) && bottom < Math.min(...known));
    assert.ok(Math.abs(top / step - Math.round(top / step)) < 1e-9);
    assert.ok((top - bottom) / step < 9);
  }
});

test("a sum of large exponentials does not overflow", () => {
  close(bound.logSumExp([1000, 1000]), 1000 + Math.log(2), 1e-9, "");
  close(bound.logSumExp([-5000, -4000]), -4000, 1e-9, "");
});
