package identity

import "time"

const (
	// authorityLife is longer than hardware: renewing an authority means that
	// every node learns a second one, which is an operation of its own.
	authorityLife = 30 * 365 * 24 * time.Hour

	// certificateLife bounds how long a node that was removed can still prove
	// that it belonged; renewal starts when a third of it is left, so a cluster
	// whose servers are all down for four days loses nothing.
	certificateLife = 14 * 24 * time.Hour

	// renewBefore is when a certificate is renewed.
	renewBefore = certificateLife / 3

	// backdate lets clocks that are two days behind accept a new certificate.
	backdate = 48 * time.Hour

	// lapseMax is how long after its end a certificate still proves, for
	// renewal alone, that a node has the key the cluster knows: a machine that
	// was off for a season comes back without hands. Whether it still belongs
	// is told by its record.
	lapseMax = 400 * 24 * time.Hour

	// JoinTTL is how long a join token lasts unless said otherwise;
	// JoinTTLMax is the longest that may be asked: machines installed over a
	// week.
	JoinTTL    = time.Hour
	JoinTTLMax = 7 * 24 * time.Hour

	// tokensMax bounds the tokens of a cluster: 300 nodes that join at once,
	// and as many people and programs, with room to spare.
	tokensMax = 2048

	// spentKept is how long used and expired join tokens stay in the list, so
	// that who uses one late is told why it is refused.
	spentKept = 7 * 24 * time.Hour

	// descriptionBytesMax bounds what a person writes about a token.
	descriptionBytesMax = 256

	// addressesMax bounds the addresses in one certificate.
	addressesMax = 32

	// pemBytesMax bounds a file of an identity: two certificates with 32
	// addresses are below 8 KiB.
	pemBytesMax = 64 << 10
)
