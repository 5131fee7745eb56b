"""Networks, distillation methods and metrics: tensors only, no path, no params file, no tracker."""
