// SPDX-License-Identifier: Apache-2.0
//! A real S3 server behind a proxy with faults, and the address by which a node finds it.

use varve_lab::fault_proxy::FaultProxy;
use varve_lab::seaweedfs::SeaweedFs;

/// See the module. What is dropped first stands first.
pub struct FaultyStore {
    pub proxy: FaultProxy,
    /// For `--store`.
    pub url: String,
    _server: SeaweedFs,
    _credentials: tempfile::TempDir,
}

impl FaultyStore {
    /// Starts both; nothing is wrong yet.
    pub fn start() -> Self {
        let server = SeaweedFs::start().unwrap();
        server.make_bucket("disks").unwrap();
        let proxy = FaultProxy::start(&server.endpoint()).unwrap();
        let credentials = tempfile::tempdir().unwrap();
        let file = credentials.path().join("credentials");
        let (key, secret) = (SeaweedFs::ACCESS_KEY, SeaweedFs::SECRET_KEY);
        std::fs::write(&file, format!("[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"))
            .unwrap();
        let url = format!("s3://disks/p?endpoint={}&credentials={}", proxy.endpoint(), file.display());
        Self { proxy, url, _server: server, _credentials: credentials }
    }
}
