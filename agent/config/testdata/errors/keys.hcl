nam      = "node-a"
data_dir = 7
run_dir  = "relative/run"
bind     = "localhost"
labels   = { zone = 5 }
backend  = "local"
log {
  level = "inf"
  colour = true
}
logs {}
name {}
defualts {
  size = "1GiB"
}
