// What the network that learns in the page has learnt, by training noise and seed, under node:
//
//     node benchmarks/learner.mjs [--steps 3000] [--noise 0,0.1,0.3] [--seeds 1,2,3] [--then 0.3]
//
// Prints for each run, at some steps, how many of the 256 squares stand (from clean inputs, at the mean of
// the code), reconstruction and divergence, means of the last hundred steps in nats per image, and the time of a step.
// With --then the noise changes to that level at the last step, and as many steps follow.

import { parseArgs } from "node:util";

import { Learner, survey } from "../dvae_lib/widgets/learner.mjs";

const text = (value) => ({ type: "string", default: value });
const options = { steps: text("3000"), noise: text("0,0.1,0.3"), seeds: text("1,2,3"), then: text("") };
const { values } = parseArgs({ options });
const numbers = (list) => list.split(",").filter(Boolean).map(Number);
const steps = Number(values.steps);
const looks = [100, 200, 300, 500, 1000, 1500, 2000, 3000, 4000, 5000];
const mean = (list) => list.reduce((sum, value) => sum + value, 0) / list.length;

for (const p of numbers(values.noise)) {
  for (const seed of numbers(values.seeds)) {
    const learner = new Learner(seed);
    const [costs, divergences] = [[], []];
    const start = performance.now();
    const show = () => {
      const { standing } = survey(learner.network, 4);
      const [cost, divergence] = [costs, divergences].map((list) => mean(list.slice(-100)).toFixed(1));
      const time = ((performance.now() - start) / learner.steps).toFixed(1);
      const where = `p = ${p}, seed ${seed}, step ${learner.steps}`;
      console.log(`${where}: ${standing} stand; ${cost} + ${divergence} nats; ${time} ms a step`);
    };
    const go = (count, noise) => {
      for (let step = 0; step < count; step++) {
        learner.step(noise);
        costs.push(learner.reconstruction);
        divergences.push(learner.divergence);
        if (looks.includes(learner.steps)) show();
      }
    };
    go(steps, p);
    for (const noise of numbers(values.then)) {
      go(steps, noise);
      const first = mean(costs.slice(steps, steps + 20)).toFixed(1);
      console.log(`  the first 20 steps with p = ${noise}: ${first} nats`);
    }
  }
}
