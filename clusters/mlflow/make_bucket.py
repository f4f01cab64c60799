"""Make the bucket of MLflow's artifacts, unless it is there: MLFLOW_BUCKET at MLFLOW_S3_ENDPOINT_URL."""

import os

import boto3

store = boto3.client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"])
bucket = os.environ["MLFLOW_BUCKET"]
if bucket not in [each["Name"] for each in store.list_buckets()["Buckets"]]:
    store.create_bucket(Bucket=bucket)
