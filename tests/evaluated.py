"""Results as JSON, which the tests look into."""

from cranio_jax.evaluation import evaluate
from cranio_jax.evaluation.results import to_json
from cranio_jax.reporting import tables


def evaluated(config, workdir):
    """Evaluates as job=evaluate does; returns the content of results.json."""
    results = evaluate.evaluate(config, workdir)
    tables.write(results, workdir)
    return to_json(results)
