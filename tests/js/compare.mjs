// What the front end's tests share: how far its numbers are from those that PyTorch computed.

import assert from "node:assert/strict";

import { crossEntropy, newPosterior } from "../../dvae_lib/widgets/widgets.mjs";

export const largest = (found, wanted) => {
  assert.equal(found.length, wanted.length);
  return wanted.reduce((most, value, i) => Math.max(most, Math.abs(value - found[i])), 0);
};

/** Networks encode and decode as the fixture's, and the cross-entropy of what they decode agrees. */
export function assertNetworksAgree(networks, fixture) {
  networks.forEach((network, k) => {
    const pixels = network.size ** 2;
    const posterior = newPosterior(network.codes);
    const [probabilities, logits] = [new Float32Array(pixels), new Float32Array(pixels)];
    const wanted = fixture.networks[k];
    fixture.images.forEach((values, i) => {
      const image = Float32Array.from(values);
      network.encode(image, posterior);
      assert.ok(largest(posterior.mean, wanted.mean[i]) < 1e-4);
      assert.ok(largest(posterior.logVariance, wanted.log_variance[i]) < 1e-4);
      network.decode(fixture.codes[i], probabilities, logits);
      assert.ok(largest(probabilities, wanted.probabilities[i]) < 1e-5);
      assert.ok(Math.abs(crossEntropy(logits, image) / wanted.cross_entropy[i] - 1) < 1e-5);
    });
  });
}
