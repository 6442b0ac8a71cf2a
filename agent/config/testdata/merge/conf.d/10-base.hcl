name     = "base"
data_dir = "/var/lib/base"
labels   = { zone = "a", rack = "1" }

backend "local" {
  config {
    paths = ["/one"]
  }
}
