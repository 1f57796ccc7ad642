# Bucket, role and registry database on AWS: `terraform init && terraform apply -var name=ip2p -var vpc_id=… -var subnet_ids='[…]' \
#   -var trusted_role_arns='[…]' -var client_security_group_ids='[…]'`.
# MLflow's database is made; the others by a member of those groups: `CREATE DATABASE ip2p; CREATE DATABASE prefect;`. The database's password is made and kept by AWS; nothing secret is in the state.

terraform {
  required_version = ">= 1.6"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 5.60"
    }
  }
}

variable "name" {
  type        = string
  description = "Prefix of everything that is made."
  default     = "ip2p"
}

variable "vpc_id" {
  type        = string
  description = "Network in which the database lies."
}

variable "subnet_ids" {
  type        = list(string)
  description = "Private subnets of the database, in two zones at least."
}

variable "client_security_group_ids" {
  type        = list(string)
  description = "Security groups whose members may reach the database, such as the cluster's nodes'."
}

variable "trusted_role_arns" {
  type        = list(string)
  description = "Who may take on the role of the workers, such as the cluster's node role."
}

resource "aws_s3_bucket" "data" {
  bucket_prefix = "${var.name}-data-"
}

resource "aws_s3_bucket_versioning" "data" {
  bucket = aws_s3_bucket.data.id
  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_public_access_block" "data" {
  bucket                  = aws_s3_bucket.data.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_server_side_encryption_configuration" "data" {
  bucket = aws_s3_bucket.data.id
  rule {
    apply_server_side_encryption_by_default {
      sse_algorithm = "aws:kms"
    }
  }
}

resource "aws_s3_bucket_lifecycle_configuration" "data" {
  bucket = aws_s3_bucket.data.id
  rule {
    id     = "parts-that-were-never-finished"
    status = "Enabled"
    filter {}
    abort_incomplete_multipart_upload {
      days_after_initiation = 3
    }
  }
}

data "aws_iam_policy_document" "trust" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "AWS"
      identifiers = var.trusted_role_arns
    }
  }
}

data "aws_iam_policy_document" "data" {
  statement {
    actions   = ["s3:ListBucket", "s3:GetBucketLocation"]
    resources = [aws_s3_bucket.data.arn]
  }
  statement {
    actions   = ["s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload"]
    resources = ["${aws_s3_bucket.data.arn}/*"]
  }
}

resource "aws_iam_role" "worker" {
  name_prefix        = "${var.name}-worker-"
  assume_role_policy = data.aws_iam_policy_document.trust.json
}

resource "aws_iam_role_policy" "data" {
  role   = aws_iam_role.worker.id
  policy = data.aws_iam_policy_document.data.json
}

resource "aws_db_subnet_group" "registry" {
  name_prefix = "${var.name}-"
  subnet_ids  = var.subnet_ids
}

resource "aws_security_group" "registry" {
  name_prefix = "${var.name}-registry-"
  vpc_id      = var.vpc_id
  ingress {
    description     = "Postgres, from the platform alone"
    from_port       = 5432
    to_port         = 5432
    protocol        = "tcp"
    security_groups = var.client_security_group_ids
  }
}

resource "aws_db_instance" "registry" {
  identifier_prefix           = "${var.name}-"
  engine                      = "postgres"
  engine_version              = "16"
  instance_class              = "db.t4g.medium"
  allocated_storage           = 50
  max_allocated_storage       = 500
  storage_encrypted           = true
  db_name                     = "mlflow"
  username                    = "ip2p"
  manage_master_user_password = true
  db_subnet_group_name        = aws_db_subnet_group.registry.name
  vpc_security_group_ids      = [aws_security_group.registry.id]
  backup_retention_period     = 14
  deletion_protection         = true
  publicly_accessible         = false
  skip_final_snapshot         = false
  final_snapshot_identifier   = "${var.name}-last"
}

output "bucket" {
  value = aws_s3_bucket.data.bucket
}

output "role_arn" {
  value = aws_iam_role.worker.arn
}

output "database" {
  value = aws_db_instance.registry.endpoint
}

output "database_secret_arn" {
  value = aws_db_instance.registry.master_user_secret[0].secret_arn
}
