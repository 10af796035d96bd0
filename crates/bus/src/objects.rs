//! The object store of stack revisions: whole objects by name, with a bound of their size.

use razar_bus_schema::stream::Store;
use tokio::io::AsyncReadExt;

use crate::{Bus, BusError, REQUEST_LIMIT};

/// An object store of the mesh.
#[derive(Debug, Clone)]
pub struct Objects {
    bus: Bus,
    store: Store,
}

impl Bus {
    /// The object store `store` (one of form `Objects`).
    #[must_use]
    pub fn objects(&self, store: Store) -> Objects {
        Objects { bus: self.clone(), store }
    }
}

impl Objects {
    async fn open(&self) -> Result<async_nats::jetstream::object_store::ObjectStore, BusError> {
        let name = self.store.name(self.bus.mesh());
        let opened = self.bus.context().get_object_store(&name).await;
        opened.map_err(|e| match e.to_string() {
            why if why.contains("not found") => BusError::Missing { what: name },
            why => BusError::Client(why),
        })
    }

    /// Stores `bytes` under `name`, over what was there. Names: letters, digits, `-`, `_`, `/`, `=`, `.`.
    ///
    /// # Errors
    /// When the bus is down, the store does not exist or is full.
    pub async fn put(&self, name: &str, bytes: &[u8]) -> Result<(), BusError> {
        let op = async {
            let mut reader = bytes;
            self.open().await?.put(name, &mut reader).await.map_err(|e| BusError::Client(e.to_string()))
        };
        self.bus.limited(name, "", REQUEST_LIMIT * 2, op).await.map(|_| ())
    }

    /// The object called `name`, at most `bytes_max` large; `None`: there is none.
    ///
    /// # Errors
    /// [`BusError::TooLarge`]; else when the bus is down or the store does not exist.
    pub async fn get(&self, name: &str, bytes_max: usize) -> Result<Option<Vec<u8>>, BusError> {
        let op = async {
            use async_nats::jetstream::object_store::GetErrorKind;
            let object = match self.open().await?.get(name).await {
                Ok(object) => object,
                Err(e) if e.kind() == GetErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(BusError::Client(e.to_string())),
            };
            if object.info().size > bytes_max {
                return Err(BusError::TooLarge { bytes: object.info().size, max: bytes_max });
            }
            let mut bytes = Vec::with_capacity(object.info().size);
            let limit = u64::try_from(bytes_max).unwrap_or(u64::MAX);
            object.take(limit).read_to_end(&mut bytes).await.map_err(|e| BusError::Client(e.to_string()))?;
            Ok(Some(bytes))
        };
        self.bus.limited(name, "", REQUEST_LIMIT * 2, op).await
    }
}
