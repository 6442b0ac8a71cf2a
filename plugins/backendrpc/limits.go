package backendrpc

import "time"

// MaxMessage bounds one message in either direction: twice the largest legal
// answer (see backends.MaxPage).
const MaxMessage = 4 << 20

// maxCall is the deadline that the server gives a call whose caller set none.
// The longest legal call is Create on a cloud: minutes.
const maxCall = 30 * time.Minute
