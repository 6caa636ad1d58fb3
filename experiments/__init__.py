"""Every number of the book that comes from training has one program here that makes it, and one file that holds it.

    python -m experiments.squares        # goes on where it was stopped; make experiments runs all

A file under experiments/results/ holds, for each run, what was measured, in which time and on which machine.
"""
