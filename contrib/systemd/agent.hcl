# The configuration of a freshly installed agent: one pool in a folder, and
# volumes for Docker. agent.hcl.example in the sources shows every key.

backend "local" {
  pool = "default"

  config {
    paths = ["/var/lib/moraine/drives/d1"]
  }
}

runtime "docker" {}
