"""Two evaluations of one experiment; the stand-in for inspect-ai only looks for their names."""

from inspect_ai import Task, task
from inspect_ai.dataset import FieldSpec, json_dataset
from inspect_ai.scorer import exact
from inspect_ai.solver import generate


def _questions(epoch: int | None) -> Task:
    dataset = json_dataset("../data/words_4L.json", FieldSpec(input="input", target="output"))
    return Task(dataset=dataset, solver=generate(), scorer=exact(), metadata={"epoch": epoch})


@task
def twins_task(epoch: int | None = None) -> Task:
    """The twins that the model was trained on."""
    return _questions(epoch)


@task
def twins_unseen(epoch: int | None = None) -> Task:
    """Twins that it never saw."""
    return _questions(epoch)
