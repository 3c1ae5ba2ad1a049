"""What every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

# Files whose tests train, kill, install or start many processes. `make test-fast` leaves them out, `make test` runs them.
LONG = (
    "analysis/probes/test_linear.py",
    "analysis/probes/test_linear_dense.py",
    "analysis/probes/test_logistic.py",
    "analysis/probes/test_scores.py",
    "analysis/test_dataset.py",
    "analysis/test_dedup.py",
    "analysis/test_search.py",
    "cli/test_config_file.py",
    "cli/test_embed.py",
    "cli/test_finetune.py",
    "cli/test_help.py",
    "cli/test_inspect.py",
    "cli/test_join.py",
    "cli/test_pictures.py",
    "cli/test_query_images.py",
    "cli/test_wrong_input.py",
    "embedding/test_benchmark.py",
    "embedding/test_encoder.py",
    "embedding/test_pipeline.py",
    "embedding/test_transformer.py",
    "embedding/test_verification.py",
    "engine/test_engine.py",
    "engine/test_network.py",
    "engine/test_resize.py",
    "finetuning/test_data.py",
    "finetuning/test_distributed.py",
    "finetuning/test_loop.py",
    "images/test_decoder.py",
    "images/test_hostile.py",
    "images/test_loader.py",
    "images/test_preprocess.py",
    "pictures/test_calibration.py",
    "pictures/test_quickstart.py",
    "pictures/test_report.py",
    "pictures/test_report_geometry.py",
    "store/test_faults.py",
    "store/test_integrity.py",
    "store/test_kill.py",
    "store/test_model.py",
    "store/test_powercut.py",
    "test_backbone.py",
    "test_end_to_end.py",
    "test_gpu_benchmark.py",
    "test_kills.py",
    "test_tiny.py",
    "test_typed_api.py",
    "test_wheel.py",
    "test_whiten.py",
    "weights/test_commands.py",
    "weights/test_layouts.py",
    "weights/test_onnx_file.py",
    "weights/test_timm_backbone.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of long files, in one place."""
    for item in items:
        if item.path.relative_to(REPOSITORY / "tests").as_posix() in LONG:
            item.add_marker(pytest.mark.long)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder with real photographs and odd files that are not part of the repository; skips the test where it is absent."""
    folder = Path(os.environ.get("DINO_EXTRACT_TEST_DATA", REPOSITORY.parent / "shared"))
    if not (folder / "images").is_dir():
        pytest.skip(f"no test photographs at `{folder}` (set DINO_EXTRACT_TEST_DATA)")
    return folder
