name   = "site"
labels = { zone = "b" }

backend "local" {
  pool = "fast"
  config {
    paths = ["/two"]
  }
}

log {
  level = "debug"
}
