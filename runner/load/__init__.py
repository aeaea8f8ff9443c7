"""Load testing: the same engine as a load generator whose figures can be trusted."""
