//! Where a VM's tag storage comes from: a pool of its own, or the host's broker.

use std::sync::Arc;

use thiserror::Error;

use super::backend::{Embedded, PoolClient};
use crate::spec::TagStorageSpec;
use crate::tag_storage::broker::{self, Client};
use crate::tag_storage::pool::Pool;
use crate::tag_storage::pool::error::{PoolError, ReserveError};
use crate::tag_storage::pool::lease::LeaseTerms;
use crate::tag_storage::supply;
use crate::tag_storage::supply::capacity::Wanted;
use crate::tag_storage::supply::lend_policy::LendPolicy;
use crate::tag_storage::supply::{OpenError, Opened, SupplyName};

/// Why a VM has no hold on tag storage.
#[derive(Debug, Error)]
pub enum Error {
    /// The broker does not give it any.
    #[error("the VM '{vm}' has no lease of the broker's tag storage")]
    Broker {
        /// The VM.
        vm: String,
        /// Why.
        #[source]
        source: broker::Error,
    },
    /// An own pool has no supply.
    #[error("there is no pool of tag storage for this VM alone")]
    Supply(#[from] OpenError),
    /// There is no such pool.
    #[error("cannot make a pool of tag storage of the size that this host should have")]
    Pool(#[source] PoolError),
    /// The lease is refused.
    #[error("no tag storage for the VM '{vm}'")]
    Lease {
        /// The VM.
        vm: String,
        /// Why.
        #[source]
        source: ReserveError,
    },
}

/// A client of a pool, and its broker.
pub struct Source {
    /// The hold.
    pub hold: Arc<dyn PoolClient>,
    /// The same client, where the pool is a broker's: the main thread handles its events.
    pub broker: Option<Arc<Client>>,
}

/// A hold on tag storage for a VM with this name.
///
/// # Errors
/// When there is no pool, or it does not take the VM's terms.
pub fn pool_client_for(spec: &TagStorageSpec, vm: &str) -> Result<Source, Error> {
    let terms = LeaseTerms { name: vm.to_owned(), min: spec.min, max: spec.max };
    if let Some(path) = &spec.broker {
        let client = Client::connect(path, terms)
            .map_err(|source| Error::Broker { vm: vm.to_owned(), source })?;
        let client = Arc::new(client);
        return Ok(Source { hold: client.clone(), broker: Some(client) });
    }
    let Opened { supply, capacity, .. } =
        supply::open(SupplyName::Ledger, Wanted::Auto, LendPolicy::Never)?;
    let pool = Pool::new(capacity.geometry, capacity.size, supply).map_err(Error::Pool)?;
    let lease =
        pool.open_lease(terms).map_err(|source| Error::Lease { vm: vm.to_owned(), source })?;
    Ok(Source { hold: Arc::new(Embedded::new(Arc::new(pool), lease)), broker: None })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::path::PathBuf;

    use arch::units::Bytes;

    use super::*;
    use crate::spec::ReservationMode;
    use crate::tag_storage::chunk::ChunkIndex;
    use crate::tag_storage::reservation::PoolClientError;

    fn spec(min: Bytes, max: Bytes) -> TagStorageSpec {
        TagStorageSpec { when: ReservationMode::Strict, broker: None, min, max }
    }

    #[test]
    fn a_vm_alone_has_a_pool_of_the_size_of_the_host() {
        let hold = pool_client_for(&spec(Bytes::ZERO, Bytes::kib(128)), "vm").unwrap().hold;

        hold.reserve(&[ChunkIndex(0), ChunkIndex(5)], 2).unwrap();
        let over = hold.reserve(&[ChunkIndex(1)], 1).unwrap_err();
        let over_max = matches!(over, PoolClientError::Pool(ReserveError::OverMax { .. }));
        assert!(over_max, "{over}");
        let report = hold.report();
        assert_eq!(report.reserved, Bytes::kib(128));
        assert!(report.capacity >= Bytes::mib(1), "{report:?}");
        assert_eq!(report.counters.unwrap().metadata_reserve_success, 2);
    }

    #[test]
    fn terms_that_cannot_be_are_refused_by_the_vms_name() {
        for terms in [spec(Bytes::ZERO, Bytes::kib(1)), spec(Bytes::gib(1 << 20), Bytes::MAX)] {
            let Err(error) = pool_client_for(&terms, "vm7") else { panic!("{terms:?}") };
            assert!(error.to_string().contains("vm7"), "{error}");
        }
    }

    #[test]
    fn a_broker_that_is_not_there_is_named() {
        let broker = Some(PathBuf::from("/nonexistent/broker"));
        let spec = TagStorageSpec { broker, ..spec(Bytes::ZERO, Bytes::MAX) };
        let Err(error) = pool_client_for(&spec, "vm") else { panic!("no broker is there") };
        let text = crate::error::chain(&error);
        assert!(text.contains("/nonexistent/broker") && text.contains("vm"), "{text}");
    }
}
