"""The learner: policy, head, packing, step. It knows no algorithm by name."""
