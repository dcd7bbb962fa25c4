"""The policy that errs least within a budget of cost, or costs least within one of error, for a model and a device."""

from metis_compile.calibration.candidates import CalibrationError
from metis_compile.calibration.choose import calibrate
from metis_compile.calibration.result import Calibration

__all__ = ["Calibration", "CalibrationError", "calibrate"]
