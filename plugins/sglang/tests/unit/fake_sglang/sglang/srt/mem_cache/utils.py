def storage_namespace_seed(extra_key, cache_salt):
    return None
