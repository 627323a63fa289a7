// SPDX-License-Identifier: Apache-2.0
//! Every byte that Varve keeps on a disk or in a store.
