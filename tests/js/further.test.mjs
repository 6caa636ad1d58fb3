// The arithmetic of the explorers of bits and of noise levels, against PyTorch's.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import * as further from "../../dvae_lib/widgets/further.mjs";
import * as widgets from "../../dvae_lib/widgets/widgets.mjs";

const fixture = JSON.parse(readFileSync(process.env.DVAE_FIXTURE, "utf8"));
const read = ({ weights, shapes }) => widgets.readLayers(new Uint8Array(Buffer.from(weights, "base64")), shapes);
const close = (found, wanted, tolerance) => {
  assert.equal(found.length, wanted.length);
  wanted.forEach((value, i) => assert.ok(Math.abs(value - found[i]) < tolerance, `${i}: ${found[i]}, not ${value}`));
};

test("a code of bits is encoded and decoded as PyTorch does", () => {
  const layers = read(fixture.bits);
  fixture.bits.images.forEach((image, i) => {
    const input = Float32Array.from(image);
    close(further.answer(layers.slice(0, 3), input), fixture.bits.logits[i], 2e-3);
    const logits = further.answer(layers.slice(3), Float32Array.from(fixture.bits.codes[i]));
    close(further.sigmoids(logits), fixture.bits.decoded[i], 1e-4);
    assert.ok(Math.abs(widgets.crossEntropy(logits, input) - fixture.bits.nats[i]) < 1e-2);
  });
});

test("the network of all levels, the exact posterior and its mean are PyTorch's at each level", () => {
  const layers = read(fixture.levels);
  fixture.levels.cases.forEach(({ level, deviation, noisy, guess, posterior, mean }) => {
    const [sigma, picture] = [further.deviation(level), Float32Array.from(noisy)];
    assert.ok(Math.abs(sigma / deviation - 1) < 1e-6);
    close(further.guess(layers, picture, sigma), guess, 1e-4);
    const found = further.exactPosterior(picture, sigma);
    close(found, posterior, 1e-4);
    close(further.posteriorMean(found), mean, 1e-4);
  });
});

test("a sure posterior has the perplexity 1, an open one that of its squares", () => {
  const sure = Array.from({ length: 256 }, (_, i) => (i === 7 ? 1 : 0));
  assert.ok(Math.abs(further.perplexity(sure) - 1) < 1e-12);
  assert.ok(Math.abs(further.perplexity(Array(256).fill(1 / 256)) - 256) < 1e-9);
  assert.ok(Math.abs(further.squaredError([1, 0.5], [0, 1]) - 1.25) < 1e-12);
});
