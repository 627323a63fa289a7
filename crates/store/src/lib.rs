// SPDX-License-Identifier: Apache-2.0
//! Object stores: a directory, S3.
