"The examples in the notebooks, which run beside the other tests."
import pytest

@pytest.mark.slow
def test_examples_of_every_notebook_run(examples):
    if examples.ended: pytest.fail(f"nbdev-test ended with {examples.ended}:\n{examples.text[-12000:]}", pytrace=False)
