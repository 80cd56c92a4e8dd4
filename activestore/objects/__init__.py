"""What happens to user code and objects: snapshots, published classes, executors."""
