"""All access to MLflow. Only this package imports it, and only when a job starts.

Only `MlflowClient` is used, with explicit ids: MLflow's fluent functions keep the experiment and the active run in
global state, which loses runs when several processes or sweeps share a store.
"""
