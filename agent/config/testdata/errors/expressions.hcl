name     = var.name
data_dir = "/var/lib/${"moraine"}"
run_dir  = upper("x")
bind     = null
labels   = { for k in ["a"] : k => k }
ports {
  api = 7420 + 1
  nbd = -(1)
}
