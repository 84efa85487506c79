"""TensorBoard's event files. Only this package uses TensorBoard, and only if `tracking.tensorboard` names a folder."""
