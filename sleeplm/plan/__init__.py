"""What a learner's programs need on a pod that is not there: compiled ahead of time, never run."""
