"""Networks, distillation methods and metrics. They take and return tensors; none reads files, params or a tracker."""
