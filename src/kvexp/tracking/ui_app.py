"""Serve MLflow's UI so that a browser without a choice of its own opens it for model training.

MLflow 3.17 opens a run's page as one of GenAI, whatever the experiment's kind, until a person chooses *Model
training*. It keeps the choice in the browser's storage. The name there is private: a UI with another one
opens as it does without this. `mlflow server --app-name kvexp` finds this by its entry point.
"""

from flask import Response, request
from mlflow.server import app as _pages
from mlflow.server.fastapi_app import app

__all__ = ["app"]

_CHOICE = """<script>
if (localStorage.getItem("mlflow.workflowType_v1") === null)
  localStorage.setItem("mlflow.workflowType_v1", '"machine_learning"');
</script>"""


@_pages.after_request
def choose_model_training(response: Response) -> Response:
    """Put the choice into the UI's page; all other answers stay as they are."""
    if request.path == "/" and response.mimetype == "text/html":
        response.direct_passthrough = False
        response.set_data(response.get_data(as_text=True).replace("<head>", f"<head>{_CHOICE}", 1))
    return response
