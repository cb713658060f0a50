"""Everything a run writes for people and programs to read: metrics, progress, pictures, summary."""

from jaxpmi.runs.writers.console import tell
from jaxpmi.runs.writers.files import MetricsWriter
from jaxpmi.runs.writers.files import read_json
from jaxpmi.runs.writers.files import to_plain
from jaxpmi.runs.writers.files import write_json
from jaxpmi.runs.writers.files import write_samples_npz
from jaxpmi.runs.writers.html_report import REPORT_FILE
from jaxpmi.runs.writers.html_report import write_comparison
from jaxpmi.runs.writers.html_report import write_report
from jaxpmi.runs.writers.pictures import write_accuracy_plot
from jaxpmi.runs.writers.pictures import write_image_folders
from jaxpmi.runs.writers.pictures import write_image_grid
from jaxpmi.runs.writers.pictures import write_learning_curve
from jaxpmi.runs.writers.progress import Progress
from jaxpmi.runs.writers.report import summary_table
from jaxpmi.runs.writers.scene_pictures import write_scene_grid

__all__ = [
    "REPORT_FILE",
    "MetricsWriter",
    "Progress",
    "read_json",
    "summary_table",
    "tell",
    "to_plain",
    "write_accuracy_plot",
    "write_comparison",
    "write_image_folders",
    "write_image_grid",
    "write_json",
    "write_learning_curve",
    "write_report",
    "write_samples_npz",
    "write_scene_grid",
]
