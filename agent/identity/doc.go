// Package identity says who is who in a cluster: the cluster's own certificate
// authority, the certificates of its nodes, the TLS configurations made of
// them, and the tokens by which nodes join and people call the API. Note 0008
// has the decisions.
//
// Invariants
//
//  1. A node belongs to a cluster by a certificate that the cluster's authority
//     signed; the authority's key is in files of server nodes (Dir/ca.key) and
//     nowhere else: not in the cluster store, not in a log, not in an answer to
//     anybody but a server that joins.
//  2. A joiner takes no certificate on trust: its token has the hash of the
//     authority's certificate.
//  3. A secret is kept as its SHA-256 only and compared in constant time. It is
//     printed once, by Token.Reveal; String and errors never have it.
//  4. A join token is used up in the transaction that makes the node's record.
//     The node that used it, known by its key, may repeat the call.
//  5. A node's key never leaves the node and stays the same for its life;
//     certificates are renewed for it. So the files of a node always fit: a
//     crash leaves either the old certificate or the new one.
//
// Goroutines: none. An Identity may be used by any goroutine.
//
// Format, in the folder of an identity, all PEM, mode 0600:
//
//	node.key  PKCS #8, ECDSA P-256; made first
//	ca.crt    the authority's certificate
//	ca.key    the authority's key, PKCS #8; on servers only
//	node.crt  the node's certificate, then the authority's; written last: the
//	          identity is complete when it is there
//
// A node's certificate: subject CN = node ID, O = cluster ID; DNS names
// NODE.node.CLUSTER.moraine.internal, on servers also
// server.CLUSTER.moraine.internal, then the node's addresses.
package identity
