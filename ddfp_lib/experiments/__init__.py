"""Many runs: matrices, studies, papermill, statistics, kept results."""
