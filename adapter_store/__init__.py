"""The one truth about adapters: records, versions, blobs, residency and the event stream."""
