package client

import (
	"context"

	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
)

// The calls of api.Nodes.

// CreateToken implements api.Nodes.
func (c *Client) CreateToken(ctx context.Context, r *apiv1.CreateTokenRequest) (*apiv1.CreateTokenResponse, error) {
	return unary(ctx, c, "create token", "", c.nodes.CreateToken, r)
}

// ListTokens implements api.Nodes.
func (c *Client) ListTokens(ctx context.Context, r *apiv1.ListTokensRequest) (*apiv1.ListTokensResponse, error) {
	return unary(ctx, c, "list tokens", "", c.nodes.ListTokens, r)
}

// RevokeToken implements api.Nodes.
func (c *Client) RevokeToken(ctx context.Context, r *apiv1.RevokeTokenRequest) (*apiv1.RevokeTokenResponse, error) {
	return unary(ctx, c, "revoke token", r.GetId(), c.nodes.RevokeToken, r)
}

// UpdateNode implements api.Nodes.
func (c *Client) UpdateNode(ctx context.Context, r *apiv1.UpdateNodeRequest) (*apiv1.UpdateNodeResponse, error) {
	return unary(ctx, c, "update node", r.GetName(), c.nodes.UpdateNode, r)
}

// RemoveNode implements api.Nodes.
func (c *Client) RemoveNode(ctx context.Context, r *apiv1.RemoveNodeRequest) (*apiv1.RemoveNodeResponse, error) {
	return unary(ctx, c, "remove node", r.GetName(), c.nodes.RemoveNode, r)
}
