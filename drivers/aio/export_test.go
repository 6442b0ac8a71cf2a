package aio

// RingSetsOf gives the external tests the ring variants.
var RingSetsOf = RingSets
