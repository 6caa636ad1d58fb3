// The digits' arithmetic: networks of another size, of another activation and with longer codes than the squares'.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import * as digits from "../../dvae_lib/widgets/digits.mjs";
import * as widgets from "../../dvae_lib/widgets/widgets.mjs";
import { assertNetworksAgree } from "./compare.mjs";

const fixture = JSON.parse(readFileSync(process.env.DVAE_FIXTURE, "utf8"));
const bytes = new Uint8Array(Buffer.from(fixture.weights, "base64"));
const networks = widgets.readNetworks(bytes, fixture.shapes, fixture.levels.length, fixture.activation);

test("the networks know their sizes, and encode and decode as PyTorch does", () => {
  for (const { size, codes, activation } of networks) assert.deepEqual([size, codes, activation], [28, 50, "tanh"]);
  assertNetworksAgree(networks, fixture);
});

test("pictures of 28 by 28 pixels survive the way to hexadecimal digits and back, and are compared whole", () => {
  const image = Float32Array.from(fixture.images[0]);
  assert.equal(widgets.toHex(image), fixture.hexadecimal);
  const back = new Float32Array(784).fill(0.5);
  widgets.fromHex(fixture.hexadecimal, back);
  assert.deepEqual(back, image);
  back[783] = 1 - back[783];
  assert.equal(widgets.wrongPixels(back, image), 1);
});

test("noise strikes every pixel of a larger picture, and a code is drawn in all its entries", () => {
  const noisy = new Float32Array(784);
  widgets.corrupt(0, 1, new Float32Array(784), 1, noisy); // each pixel is flipped
  assert.ok(noisy.every((value) => value === 1));
  const posterior = { mean: new Float32Array(50).fill(3), logVariance: new Float32Array(50).fill(-2) };
  const code = new Float32Array(50);
  widgets.sample(posterior, 1, code);
  assert.equal(new Set(code).size, 50);
  assert.ok(Math.abs(code.reduce((sum, value) => sum + value, 0) / 50 - 3) < 5 * Math.exp(-1) / Math.sqrt(50));
});

test("words count set and open pixels", () => {
  const picture = Float32Array.of(0, 0.09, 0.11, 0.5, 0.89, 1);
  assert.equal(digits.countsInWords(picture), "3 pixels set, 3 between 0.1 and 0.9");
});

test("a distance is in standard deviations", () => {
  const posterior = { mean: Float32Array.of(1, 2), logVariance: Float32Array.of(Math.log(4), Math.log(0.25)) };
  assert.ok(Math.abs(digits.deviations(Float32Array.of(7, 0), posterior) - 5) < 1e-6);
});

test("a plane of larger pictures holds 17 by 17, each in its place and decoded from the code in its middle", () => {
  const [size, tiles, width] = [28, 17, 17 * 28];
  const network = {
    size,
    decode([z1, z2], picture) { // shows its code in two pixels
      picture.fill(0);
      [picture[size + 1], picture[2 * size + 2]] = [z1, z2].map((z) => (0.9 * (z + 3)) / 6);
    },
  };
  const memory = new Uint32Array(width * width);
  widgets.paintManifold(network, 3, memory, widgets.GREY);
  for (let row = 0; row < tiles; row++) {
    for (let column = 0; column < tiles; column++) {
      const shown = [0, 1, 2].map((i) => memory[(size * row + i) * width + size * column + i] & 255);
      const wanted = [2 * column + 1, 2 * (tiles - 1 - row) + 1].map((odd) => Math.round((0.9 * 255 * odd) / 34));
      assert.deepEqual(shown, [0, ...wanted]);
    }
  }
});
