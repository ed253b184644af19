"The examples in the notebooks."
import pytest
from conftest import ROOT, sh

@pytest.mark.slow
def test_examples_of_every_notebook_run():
    r = sh('nbdev-test', '--n-workers', '1', '--timing', cwd=ROOT, check=False)
    if r.returncode: pytest.fail(f"nbdev-test ended with {r.returncode}:\n{r.stdout[-12000:]}", pytrace=False)
